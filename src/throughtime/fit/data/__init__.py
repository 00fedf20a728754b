"""A source's name -> sequences in three parts -> batches of similar length."""
