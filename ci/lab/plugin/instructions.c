/* Counts the guest's instructions: what `ci/lab/instructions` loads into QEMU. In marked sections those of user
 * mode; with the argument whole=on those of the kernel too, and all that are between submissions.
 *
 * The guest marks sections with instructions that do nothing and that no compiler makes:
 *   xchg %cx,%cx  a section begins
 *   xchg %dx,%dx  it ends and counts
 *   xchg %di,%di  it ends, counts, and was one submission
 *   xchg %si,%si  it ends and does not count
 * For a guest with one processor. */
#include "qemu.h"

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static uint64_t executed, begin, counted, sections, submissions, first, last;
static int is_inside, whole;

static void on_begin(unsigned cpu, void *data)
{
    (void)cpu, (void)data;
    begin = executed;
    is_inside = 1;
}

static void on_end(unsigned cpu, void *data)
{
    (void)cpu;
    if (data == &submissions) {
        first = submissions ? first : executed;
        last = executed;
    }
    if (is_inside && data) {
        /* The marker itself was counted, too. */
        counted += executed - begin - 1;
        ++*(uint64_t *)data;
    }
    is_inside = 0;
}

static void on_translation(plugin_id id, struct qemu_plugin_tb *tb)
{
    static const uint8_t begins[] = {0x66, 0x87, 0xc9}, keeps[] = {0x66, 0x87, 0xd2}, submits[] = {0x66, 0x87, 0xff},
                         drops[] = {0x66, 0x87, 0xf6};
    size_t count = qemu_plugin_tb_n_insns(tb);
    (void)id;
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        const void *data = qemu_plugin_insn_data(insn);
        /* The kernel's are above. */
        if (!whole && qemu_plugin_insn_vaddr(insn) >> 47)
            continue;
        qemu_plugin_register_vcpu_insn_exec_inline(insn, ADD_U64, &executed, 1);
        if (qemu_plugin_insn_size(insn) != sizeof begins)
            continue;
        if (!memcmp(data, begins, sizeof begins))
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_begin, NO_REGISTERS, NULL);
        else if (!memcmp(data, keeps, sizeof keeps))
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_end, NO_REGISTERS, &sections);
        else if (!memcmp(data, submits, sizeof submits))
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_end, NO_REGISTERS, &submissions);
        else if (!memcmp(data, drops, sizeof drops))
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_end, NO_REGISTERS, NULL);
    }
}

static void on_exit_(plugin_id id, void *data)
{
    char line[256];
    (void)id, (void)data;
    snprintf(line, sizeof line, "%llu instructions, %llu submissions, %llu other sections\n", (unsigned long long)counted,
             (unsigned long long)submissions, (unsigned long long)sections);
    qemu_plugin_outs(line);
    snprintf(line, sizeof line, "%llu from the first submission to the last, %llu in all\n",
             (unsigned long long)(last - first), (unsigned long long)executed);
    qemu_plugin_outs(line);
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    whole = argc > 0 && !strcmp(argv[0], "whole=on");
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, on_exit_, NULL);
    return 0;
}
