/* A process on any x86-64 processor with AVX2 -> one that runs AMX's instructions.
 *
 * A processor without AMX raises SIGILL at each of them. The handler does in software what the manual's pseudocode says,
 * on tiles of the thread's own, and goes on behind the instruction. What the manual rules out ends the process.
 *
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, LDTILECFG to TILEZERO, TDPBF16PS.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>
#include <xmmintrin.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };

static __thread struct {
    int palette, rows[TILES], row_bytes[TILES];
    uint8_t data[TILES][ROWS][ROW_BYTES];
} state;

/* Instructions run by all threads, for a test to see that there were any. */
unsigned long long amx_emulated = 0;

static const char *fault;

static void check(int holds, const char *rule) {
    if (!holds && fault == NULL) fault = rule;
}

/* --- what the bytes say */

typedef struct {
    int opcode, prefix, reg, rm, vvvv, is_memory, length;
    uint64_t address, stride;
} Instruction;

static uint64_t register_of(const greg_t *registers, int number) {
    static const int places[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return (uint64_t)registers[places[number]];
}

static int32_t displacement(const uint8_t *at, int size) {
    int32_t wide = 0;
    if (size == 1) return (int8_t)*at;
    if (size == 4) memcpy(&wide, at, 4);
    return wide;
}

/* base + displacement, and the index as a stride; no index is a stride of 0. */
static const uint8_t *decode_memory(Instruction *x, const uint8_t *at, const greg_t *registers, int not_x, int not_b) {
    int mod = at[-1] >> 6, rm = at[-1] & 7, size = mod == 1 ? 1 : mod == 2 ? 4 : 0;
    if (rm == 4) {
        int sib = *at++, index = (sib >> 3 & 7) | (not_x ? 0 : 8), base = sib & 7;
        if (index != 4) x->stride = register_of(registers, index) << (sib >> 6);
        if (base == 5 && mod == 0) size = 4;
        else x->address = register_of(registers, base | (not_b ? 0 : 8));
    } else if (rm == 5 && mod == 0) {
        size = 4;
        x->address = (uint64_t)(at + 4);
    } else {
        x->address = register_of(registers, rm | (not_b ? 0 : 8));
    }
    x->address += (int64_t)displacement(at, size);
    return at + size;
}

/* Whether it may be one of AMX's.
 * C4 [RXB inverted, map] [W, vvvv inverted, L, prefix] opcode ModRM ...: all of AMX is in the map 0F38. */
static int decode(Instruction *x, const greg_t *registers) {
    const uint8_t *start = (const uint8_t *)registers[REG_RIP], *at = start + 5;
    memset(x, 0, sizeof *x);
    if (start[0] != 0xC4 || (start[1] & 0x1F) != 2 || (start[2] & 0x84) != 0) return 0;
    x->prefix = start[2] & 3;
    x->vvvv = ~(start[2] >> 3) & 15;
    x->opcode = start[3];
    x->reg = start[4] >> 3 & 7;
    x->rm = start[4] & 7;
    x->is_memory = start[4] >> 6 != 3;
    if (x->is_memory) at = decode_memory(x, at, registers, start[1] & 0x40, start[1] & 0x20);
    x->length = (int)(at - start);
    return 1;
}

/* --- what the instructions do */

static void load_configuration(const uint8_t *table) {
    memset(&state, 0, sizeof state);
    check(table[0] <= 1, "a palette is 0 or 1");
    for (int i = 1; i < 16; i++) check(table[i] == 0, "bytes 1 to 15 of a configuration are zero");
    if (table[0] == 0) return;
    for (int t = 0; t < 16; t++) {
        int row_bytes = table[16 + 2 * t] | table[17 + 2 * t] << 8, rows = table[48 + t];
        check(t < TILES || (row_bytes == 0 && rows == 0), "there are eight tiles");
        check(rows <= ROWS && row_bytes <= ROW_BYTES, "a tile has at most 16 rows of 64 bytes");
        check((rows == 0) == (row_bytes == 0), "a tile has both rows and bytes, or neither");
        if (t >= TILES || fault) continue;
        state.rows[t] = rows;
        state.row_bytes[t] = row_bytes;
    }
    state.palette = 1;
}

static void store_configuration(uint8_t *table) {
    memset(table, 0, 64);
    table[0] = (uint8_t)state.palette;
    for (int t = 0; t < TILES; t++) {
        table[16 + 2 * t] = (uint8_t)state.row_bytes[t];
        table[48 + t] = (uint8_t)state.rows[t];
    }
}

static void check_tile(int t) { check(t < TILES && state.palette == 1 && state.rows[t] > 0, "a tile is used unconfigured"); }

static void load_tile(int t, uint64_t address, uint64_t stride) {
    check_tile(t);
    if (fault) return;
    memset(state.data[t], 0, sizeof state.data[t]);
    for (int i = 0; i < state.rows[t]; i++)
        memcpy(state.data[t][i], (const void *)(address + i * stride), state.row_bytes[t]);
}

static void store_tile(int t, uint64_t address, uint64_t stride) {
    check_tile(t);
    if (fault) return;
    for (int i = 0; i < state.rows[t]; i++) memcpy((void *)(address + i * stride), state.data[t][i], state.row_bytes[t]);
}

static float widened(const uint8_t *number) {
    uint16_t half;
    memcpy(&half, number, 2);
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Denormal numbers are zero, rounding is to the nearest, whatever the thread has set. */
static void multiply(int to, int a, int b) {
    check_tile(to), check_tile(a), check_tile(b);
    check(to != a && to != b && a != b, "the three tiles of a product are different");
    check(state.row_bytes[to] % 4 == 0 && state.row_bytes[a] % 4 == 0 && state.row_bytes[b] % 4 == 0, "rows of whole pairs");
    check(state.rows[to] == state.rows[a], "A has the rows of C");
    check(state.row_bytes[a] / 4 == state.rows[b], "B has a row for each pair of A");
    check(state.row_bytes[to] == state.row_bytes[b], "B has the columns of C");
    if (fault) return;
    unsigned before = _mm_getcsr();
    _mm_setcsr(0x1F80 | 0x8040);
    int pairs = state.row_bytes[a] / 4, columns = state.row_bytes[to] / 4;
    float wide_b[ROWS][ROW_BYTES / 2] = {0};
    for (int k = 0; k < pairs; k++)
        for (int n = 0; n < 2 * columns; n++) wide_b[k][n] = widened(&state.data[b][k][2 * n]);
    for (int m = 0; m < state.rows[to]; m++) {
        float sums[ROW_BYTES / 2] = {0}, row[ROW_BYTES / 4];
        for (int k = 0; k < pairs; k++) {
            float pair[2] = {widened(&state.data[a][m][4 * k]), widened(&state.data[a][m][4 * k + 2])}, both[ROW_BYTES / 2];
            for (int n = 0; n < ROW_BYTES / 2; n++) both[n] = pair[n & 1];
            for (int n = 0; n < ROW_BYTES / 2; n++) sums[n] = __builtin_fmaf(both[n], wide_b[k][n], sums[n]);
        }
        memcpy(row, state.data[to][m], sizeof row);
        for (int n = 0; n < columns; n++) row[n] += sums[2 * n] + sums[2 * n + 1];
        memset(state.data[to][m], 0, ROW_BYTES);
        memcpy(state.data[to][m], row, 4 * columns);
    }
    _mm_setcsr(before);
}

enum { NONE, P66, PF3, PF2 };

static int run(const Instruction *x) {
    switch (x->opcode << 4 | x->prefix) {
        case 0x49 << 4 | NONE:
            if (!x->is_memory && (x->reg != 0 || x->rm != 0)) return 0;
            if (x->is_memory) load_configuration((const uint8_t *)(x->address + x->stride));
            else memset(&state, 0, sizeof state);
            return 1;
        case 0x49 << 4 | P66:
            if (!x->is_memory) return 0;
            store_configuration((uint8_t *)(x->address + x->stride));
            return 1;
        case 0x49 << 4 | PF2:
            if (x->is_memory) return 0;
            check_tile(x->reg);
            memset(state.data[x->reg], 0, sizeof state.data[x->reg]);
            return 1;
        case 0x4B << 4 | PF2:
        case 0x4B << 4 | P66:
            if (!x->is_memory) return 0;
            load_tile(x->reg, x->address, x->stride);
            return 1;
        case 0x4B << 4 | PF3:
            if (!x->is_memory) return 0;
            store_tile(x->reg, x->address, x->stride);
            return 1;
        case 0x5C << 4 | PF3:
            if (x->is_memory) return 0;
            multiply(x->reg, x->rm, x->vvvv);
            return 1;
    }
    return 0;
}

static void on_illegal(int number, siginfo_t *info, void *context) {
    (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    Instruction x;
    /* Those that follow at once are run too: a signal takes longer than any of them. */
    for (int first = 1; decode(&x, registers) || first; first = 0) {
        int known = run(&x);
        if (!known && !first) return;
        if (!known && !fault) fault = "not an instruction of AMX";
        if (fault) {
            fprintf(stderr, "amx_emulator: %s\n", fault);
            signal(number, SIG_DFL);
            return;
        }
        __atomic_fetch_add(&amx_emulated, 1, __ATOMIC_RELAXED);
        registers[REG_RIP] += x.length;
    }
}

static struct sigaction before;

/* From here to amx_stop all threads of the process have AMX. */
void amx_start(void) {
    struct sigaction action = {0};
    action.sa_sigaction = on_illegal;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, &before);
}

void amx_stop(void) { sigaction(SIGILL, &before, NULL); }
