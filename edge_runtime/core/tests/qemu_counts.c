/* A plugin for QEMU's TCG: how often each block of guest code ran, as `address instructions executions` lines, so that instructions can
 * be counted (benchmarks/arm.py) and told apart by function (benchmarks/arm_functions.py). Only the few names of the plugin interface that it uses are declared.
 *
 *     qemu-… -plugin qemu_counts.so,out=FILE */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { INLINE_ADD_U64 = 0 };
typedef void (*on_translation)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, on_translation cb);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, int op, void *at, uint64_t add);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*cb)(qemu_plugin_id_t id, void *data), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

typedef struct block {
    struct block *next;
    uint64_t address, instructions, executions;
} block;

enum { BUCKETS = 1 << 14 };
static block *table[BUCKETS];
static char out[4096];

/* Blocks that are translated again keep their count. */
static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    const uint64_t address = qemu_plugin_tb_vaddr(tb), n = qemu_plugin_tb_n_insns(tb);
    block **at = &table[(address >> 1) % BUCKETS], *b;
    (void)id;
    for (b = *at; b && (b->address != address || b->instructions != n); b = b->next)
        ;
    if (!b) {
        b = calloc(1, sizeof(*b));
        if (!b)
            abort();
        b->address = address;
        b->instructions = n;
        b->next = *at;
        *at = b;
    }
    qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &b->executions, 1);
}

static void done(qemu_plugin_id_t id, void *data)
{
    FILE *f = fopen(out, "w");
    (void)id;
    (void)data;
    if (!f)
        return;
    for (unsigned i = 0; i < BUCKETS; i++)
        for (const block *b = table[i]; b; b = b->next)
            if (b->executions)
                fprintf(f, "%" PRIx64 " %" PRIu64 " %" PRIu64 "\n", b->address, b->instructions, b->executions);
    fclose(f);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            snprintf(out, sizeof(out), "%s", argv[i] + 4);
    if (!out[0])
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, done, NULL);
    return 0;
}
