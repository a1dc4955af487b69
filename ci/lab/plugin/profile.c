/* Counts how often each processor of the guest executes each block of instructions: what `ci/lab/profile` loads into
 * QEMU. At the end it writes to the file that its argument `out` names, a line for each block that was executed: its address,
 * its instructions, and how often on each processor. A block that is left half-way by a fault counts as a whole. */
#include "qemu.h"
#include <stdlib.h>

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { MOST_PROCESSORS = 8 };

struct block {
    uint64_t address, instructions, executed[MOST_PROCESSORS];
    struct block *next;
};

static struct block *blocks;
static char path[4096];

static void on_block(unsigned cpu, void *data)
{
    ((struct block *)data)->executed[cpu % MOST_PROCESSORS]++;
}

static void on_translation(plugin_id id, struct qemu_plugin_tb *tb)
{
    struct block *block = calloc(1, sizeof *block);
    (void)id;
    if (!block)
        return;
    block->address = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0));
    block->instructions = qemu_plugin_tb_n_insns(tb);
    /* Processors translate side by side. */
    block->next = __atomic_load_n(&blocks, __ATOMIC_SEQ_CST);
    while (!__atomic_compare_exchange_n(&blocks, &block->next, block, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, NO_REGISTERS, block);
}

static void on_exit_(plugin_id id, void *data)
{
    FILE *file = fopen(path, "w");
    (void)id, (void)data;
    for (struct block *block = file ? blocks : NULL; block; block = block->next) {
        uint64_t all = 0;
        for (int cpu = 0; cpu < MOST_PROCESSORS; cpu++)
            all += block->executed[cpu];
        if (!all)
            continue;
        fprintf(file, "%llx %llu", (unsigned long long)block->address, (unsigned long long)block->instructions);
        for (int cpu = 0; cpu < MOST_PROCESSORS; cpu++)
            fprintf(file, " %llu", (unsigned long long)block->executed[cpu]);
        fputc('\n', file);
    }
    if (!file || fclose(file))
        qemu_plugin_outs("the counts could not be written\n");
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    if (argc != 1 || strncmp(argv[0], "out=", 4) || snprintf(path, sizeof path, "%s", argv[0] + 4) >= (int)sizeof path)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, on_exit_, NULL);
    return 0;
}
