"""Files -> tables of rows in three parts -> batches; what several tasks need of it."""
