/* Counts what each processor of the guest executes, in user mode and in the kernel, and tells it when the guest asks:
 * by xchg %r9w,%r9w, which does nothing and which no compiler makes. A process that has a processor to itself is
 * so told apart from the others. Each time it prints a line, `executed`, and USER+KERNEL for each processor.
 * A block that is left half-way by a fault counts as a whole. */
#include "qemu.h"

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { MOST_PROCESSORS = 64, KERNEL = 1, LINE_BYTES = 64 * 44 };

/* Each on a line of its own: every processor writes to its own only. */
static struct {
    uint64_t executed[2];
    char padding[48];
} counts[MOST_PROCESSORS];
static unsigned processors;

/* What a block is: twice its instructions, and whether they are the kernel's. */
static void on_block(unsigned cpu, void *data)
{
    uintptr_t block = (uintptr_t)data;
    counts[cpu % MOST_PROCESSORS].executed[block & KERNEL] += block >> 1;
}

static void on_start(plugin_id id, unsigned cpu)
{
    (void)id;
    if (cpu < MOST_PROCESSORS && cpu >= processors)
        processors = cpu + 1;
}

static void on_ask(unsigned cpu, void *data)
{
    char line[LINE_BYTES];
    size_t length = (size_t)snprintf(line, sizeof line, "executed");
    (void)cpu, (void)data;
    for (unsigned i = 0; i < processors; i++)
        length += (size_t)snprintf(line + length, sizeof line - length, " %llu+%llu",
                                   (unsigned long long)counts[i].executed[0],
                                   (unsigned long long)counts[i].executed[KERNEL]);
    snprintf(line + length, sizeof line - length, "\n");
    qemu_plugin_outs(line);
}

static void on_translation(plugin_id id, struct qemu_plugin_tb *tb)
{
    static const uint8_t asks[] = {0x66, 0x45, 0x87, 0xc9};
    size_t count = qemu_plugin_tb_n_insns(tb);
    int is_kernel = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0)) >> 47 != 0;
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, NO_REGISTERS, (void *)(uintptr_t)(count << 1 | is_kernel));
    for (size_t i = 0; i < count && !is_kernel; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        if (qemu_plugin_insn_size(insn) == sizeof asks && !memcmp(qemu_plugin_insn_data(insn), asks, sizeof asks))
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_ask, NO_REGISTERS, NULL);
    }
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_init_cb(id, on_start);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    return 0;
}
