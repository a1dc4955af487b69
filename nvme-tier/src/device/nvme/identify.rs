//! What Identify returns (Base 5.17.2, NVM 4.1.5).

use extent::{Kind, Result};

use super::deallocate::common_multiple;
use super::{PAGE_BYTES, Protection, ProtectionType, u16_at, u32_at, u64_at, u128_at};

/// Bytes of every Identify data structure.
pub(in crate::device) const IDENTIFY_BYTES: usize = 4096;

/// The largest logical block there is a use for.
const LARGEST_BLOCK_BYTES: u32 = 64 << 10;

/// Identify Controller (CNS 01h, Base figure 275), as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::device) struct IdentifyController {
    /// SN, Serial Number.
    pub(in crate::device) serial: String,
    /// MN, Model Number.
    pub(in crate::device) model: String,
    /// FR, Firmware Revision.
    pub(in crate::device) firmware: String,
    /// MDTS: the most bytes of one command, `None` if there is no limit.
    pub(in crate::device) max_transfer_bytes: Option<u64>,
    /// VER, major and minor.
    pub(in crate::device) version: (u16, u8),
    /// OACS bit 8: whether there is Doorbell Buffer Config.
    pub(in crate::device) has_doorbell_buffers: bool,
    /// AERL: how many asynchronous event requests may be outstanding.
    pub(in crate::device) asynchronous_events: u16,
    /// ACL: how many aborts may be.
    pub(in crate::device) aborts: u16,
    /// NN, the highest namespace id.
    pub(in crate::device) namespaces: u32,
    /// ONCS bit 2: Dataset Management.
    pub(in crate::device) has_deallocate: bool,
    /// ONCS bit 3: Write Zeroes.
    pub(in crate::device) has_write_zeroes: bool,
    /// VWC bit 0: whether there is a volatile write cache.
    pub(in crate::device) has_volatile_cache: bool,
    /// AWUPF: how many blocks are written whole or not at all when the power fails.
    pub(in crate::device) atomic_blocks_power_fail: u32,
    /// SGLS: whether I/O commands may use SGL descriptors, and those may lie at any byte.
    pub(in crate::device) has_sgl: bool,
    /// TNVMCAP, bytes of all namespaces; zero if it does not say.
    pub(in crate::device) capacity_bytes: u128,
    /// CRDT1 to CRDT3, in tenths of a second: how long to wait before a command is sent again whose
    /// status says 1, 2 or 3 in CRD.
    pub(in crate::device) retry_delays: [u16; 3],
}

impl IdentifyController {
    /// From an Identify page.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if entries of queues have other sizes than all controllers have.
    ///
    /// # Panics
    /// If the page is shorter than [`IDENTIFY_BYTES`].
    pub(in crate::device) fn parse(page: &[u8]) -> Result<Self> {
        assert!(page.len() >= IDENTIFY_BYTES, "a page of {} bytes", page.len());
        let (sqes, cqes) = (page[512], page[513]);
        let takes = |sizes: u8, size: u8| sizes & 0xf <= size && size <= sizes >> 4;
        if !takes(sqes, 6) || !takes(cqes, 4) {
            return Err(nonsense(format!("queue entries of sizes {sqes:02x}h and {cqes:02x}h")));
        }
        let mdts = page[77];
        if mdts > 30 {
            return Err(nonsense(format!("a largest transfer (MDTS) of 2^{mdts} pages")));
        }
        let (vs, oacs, oncs) = (u32_at(page, 80), u16_at(page, 256), u16_at(page, 520));
        // Bits 1:0: no SGLs, any alignment, or dwords; this driver's memory lies at least so.
        let sgls = u32_at(page, 536) & 0b11;
        Ok(Self {
            serial: text(&page[4..24]),
            model: text(&page[24..64]),
            firmware: text(&page[64..72]),
            max_transfer_bytes: (mdts != 0).then(|| (PAGE_BYTES as u64) << mdts),
            version: ((vs >> 16) as u16, vs.to_le_bytes()[1]),
            has_doorbell_buffers: oacs & 1 << 8 != 0,
            asynchronous_events: u16::from(page[259]) + 1,
            aborts: u16::from(page[258]) + 1,
            namespaces: u32_at(page, 516),
            has_deallocate: oncs & 1 << 2 != 0,
            has_write_zeroes: oncs & 1 << 3 != 0,
            has_volatile_cache: page[525] & 1 != 0,
            atomic_blocks_power_fail: u32::from(u16_at(page, 528)) + 1,
            has_sgl: sgls == 1 || sgls == 2,
            capacity_bytes: u128_at(page, 280),
            retry_delays: [128, 130, 132].map(|at| u16_at(page, at)),
        })
    }
}

impl IdentifyController {
    /// Whether there are Identify pages for command sets; an older controller may take their numbers
    /// for something else.
    pub(in crate::device) fn has_command_set_pages(&self) -> bool {
        self.version >= (1, 4)
    }

    /// How long to wait before a command is sent again of which a status says so, in tenths of a
    /// second.
    pub(in crate::device) fn retry_delay(&self, which: u8) -> u16 {
        usize::from(which).checked_sub(1).map_or(0, |at| self.retry_delays[at])
    }
}

/// Identify Namespace (CNS 00h, NVM figure 97), as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device) struct IdentifyNamespace {
    /// NSZE, in blocks.
    pub(in crate::device) blocks: u64,
    /// Bytes of data of a block, from the LBA format in use.
    pub(in crate::device) block_bytes: u32,
    /// T10 protection information, kept in a buffer of its own.
    pub(in crate::device) protection: Option<Protection>,
    /// Bytes that are written whole or not at all when the power fails: from NAWUPF, or else from
    /// the controller's AWUPF.
    pub(in crate::device) atomic_bytes: u32,
    /// NPWG in bytes: what writes should be multiples of.
    pub(in crate::device) preferred_write_bytes: u32,
    /// NOIOB in bytes: what one command should not cross; zero if nothing.
    pub(in crate::device) boundary_bytes: u64,
    /// NPDG and NPDA in bytes: what a deallocation should begin at and be multiples of.
    pub(in crate::device) deallocate_bytes: u64,
    /// DLFEAT bit 3: whether Write Zeroes deallocates if it is asked to.
    pub(in crate::device) zeroes_deallocate: bool,
}

impl IdentifyNamespace {
    /// From an Identify page.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a namespace that is not active; [`Kind::Corrupt`] for what cannot be;
    /// [`Kind::Unsupported`] for metadata that is no protection information of 8 bytes in a buffer
    /// of its own.
    ///
    /// # Panics
    /// If the page is shorter than [`IDENTIFY_BYTES`].
    pub(in crate::device) fn parse(page: &[u8], controller: &IdentifyController) -> Result<Self> {
        assert!(page.len() >= IDENTIFY_BYTES, "a page of {} bytes", page.len());
        let blocks = u64_at(page, 0);
        if page[..IDENTIFY_BYTES].iter().all(|byte| *byte == 0) {
            return Err(Kind::NotFound.error("it has no such active namespace"));
        }
        // FLBAS: bits 3:0, and 6:5 above them.
        let flbas = page[26];
        let index = usize::from(flbas & 0xf | (flbas >> 5 & 0b11) << 4);
        let formats = usize::from(page[25]) + 1;
        if index >= formats.min(64) {
            return Err(nonsense(format!("LBA format {index} of {formats}")));
        }
        let format = u32_at(page, 128 + 4 * index);
        let (metadata_bytes, power) = (format & 0xffff, format >> 16 & 0xff);
        if !(9..=31).contains(&power) || 1 << power > LARGEST_BLOCK_BYTES {
            return Err(nonsense(format!("logical blocks of 2^{power} bytes")));
        }
        let block_bytes = 1u32 << power;
        if blocks == 0 || blocks.checked_mul(u64::from(block_bytes)).is_none() {
            return Err(nonsense(format!("{blocks} logical blocks of {block_bytes} bytes")));
        }
        let protection = protection(page, metadata_bytes, flbas, block_bytes)?;
        let nsfeat = page[24];
        let nawupf = u16_at(page, 36);
        let atomic_blocks = match (nsfeat & 0b10 != 0, nawupf, u16_at(page, 42)) {
            // NABO: the boundaries of what is atomic lie elsewhere than at multiples of it.
            (true, _, 1..) => 1,
            (true, 1.., _) => u32::from(nawupf) + 1,
            _ => controller.atomic_blocks_power_fail,
        };
        // OPTPERF: whether the preferences are there. All are zero-based.
        let preference = |at| if nsfeat & 1 << 4 != 0 { u16_at(page, at) } else { 0 };
        let preferred = u32::from(preference(64)) + 1;
        let (granularity, alignment) =
            (u64::from(preference(68)) + 1, u64::from(preference(70)) + 1);
        Ok(Self {
            blocks,
            block_bytes,
            protection,
            atomic_bytes: atomic_blocks.saturating_mul(block_bytes),
            preferred_write_bytes: preferred.saturating_mul(block_bytes),
            boundary_bytes: u64::from(u16_at(page, 46)) * u64::from(block_bytes),
            deallocate_bytes: common_multiple(granularity, alignment) * u64::from(block_bytes),
            zeroes_deallocate: page[33] & 1 << 3 != 0,
        })
    }

    /// Bytes of data that it holds.
    pub(in crate::device) fn capacity_bytes(&self) -> u64 {
        self.blocks * u64::from(self.block_bytes)
    }

    /// The unit that survives a power cut whole and is worth writing: at least a block, up to 4 KiB
    /// where the device writes that much as one. The kernel finds the same for its block device.
    pub(in crate::device) fn unit_bytes(&self) -> u32 {
        let physical = self.atomic_bytes.min(self.preferred_write_bytes).min(4096);
        let physical = if physical.is_power_of_two() { physical } else { self.block_bytes };
        physical.max(self.block_bytes)
    }
}

fn protection(
    page: &[u8],
    metadata_bytes: u32,
    flbas: u8,
    block_bytes: u32,
) -> Result<Option<Protection>> {
    let dps = page[29];
    let kind = match dps & 0b111 {
        0 if metadata_bytes == 0 => return Ok(None),
        1 => Some(ProtectionType::One),
        2 => Some(ProtectionType::Two),
        3 => Some(ProtectionType::Three),
        _ => None,
    };
    let in_own_buffer = flbas & 1 << 4 == 0;
    match kind {
        Some(kind) if metadata_bytes == 8 && in_own_buffer => {
            Ok(Some(Protection { kind, block_bytes: block_bytes as usize }))
        }
        _ => Err(Kind::Unsupported.error(format!(
            "its blocks of {block_bytes} bytes carry {metadata_bytes} bytes of metadata {}, with \
             protection type {}: reformat it without metadata, or with 8 bytes in a separate \
             buffer and protection type 1 (nvme format --lbaf=… --ms=0 --pi=1)",
            if in_own_buffer { "in a separate buffer" } else { "interleaved" },
            dps & 0b111
        ))),
    }
}

/// The ids in an Active Namespace ID list (CNS 02h, Base 5.17.2.2).
pub(in crate::device) fn active_namespaces(page: &[u8]) -> impl Iterator<Item = u32> {
    (0..IDENTIFY_BYTES / 4).map(|index| u32_at(page, 4 * index)).take_while(|id| *id != 0)
}

fn text(bytes: &[u8]) -> String {
    let printable = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { ' ' };
    bytes.iter().map(printable).collect::<String>().trim().to_owned()
}

#[expect(clippy::needless_pass_by_value, reason = "every caller has just made it")]
fn nonsense(what: String) -> extent::Error {
    Kind::Corrupt.error(format!(
        "the controller reports {what}, which no sound one does: update its firmware or replace it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::nvme::pages::{controller_page, namespace_page};

    fn controller() -> IdentifyController {
        IdentifyController::parse(&controller_page()).expect("a plain one")
    }

    #[test]
    fn a_plain_controller_is_read() {
        let controller = controller();
        assert_eq!((controller.serial.as_str(), controller.model.as_str()), ("S1234", "A  device"));
        assert_eq!(controller.max_transfer_bytes, Some(512 << 10));
        assert_eq!((controller.version, controller.aborts), ((1, 4), 4));
        assert!(controller.has_volatile_cache && controller.has_write_zeroes);
        assert!(!controller.has_sgl && !controller.has_doorbell_buffers);
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut page = controller_page();
            change(&mut page);
            IdentifyController::parse(&page).expect_err("nonsense").kind()
        };
        assert_eq!(refused(&|page| page[512] = 0), Kind::Corrupt);
        assert_eq!(refused(&|page| page[513] = 0x33), Kind::Corrupt);
        assert_eq!(refused(&|page| page[77] = 200), Kind::Corrupt);
        let refused = |blocks, power, change: &dyn Fn(&mut Vec<u8>)| {
            let mut page = namespace_page(blocks, power);
            change(&mut page);
            IdentifyNamespace::parse(&page, &controller()).expect_err("nonsense").kind()
        };
        assert_eq!(refused(0, 9, &|_| {}), Kind::Corrupt);
        assert_eq!(refused(u64::MAX, 9, &|_| {}), Kind::Corrupt);
        assert_eq!(refused(1, 8, &|_| {}), Kind::Corrupt);
        assert_eq!(refused(1, 255, &|_| {}), Kind::Corrupt);
        assert_eq!(refused(1, 9, &|page| page[26] = 1), Kind::Corrupt);
        assert_eq!(refused(1, 9, &|page| page.fill(0)), Kind::NotFound);
        assert_eq!(refused(1, 9, &|page| page[128] = 8), Kind::Unsupported);
        assert_eq!(
            refused(1, 9, &|page| (page[128], page[26], page[29]) = (8, 16, 1)),
            Kind::Unsupported
        );
    }

    #[test]
    fn the_unit_is_what_survives_a_power_cut() {
        let parse = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut page = namespace_page(1 << 20, 9);
            change(&mut page);
            IdentifyNamespace::parse(&page, &controller()).expect("sound")
        };
        assert_eq!(parse(&|_| {}).unit_bytes(), 512);
        let large = parse(&|page| (page[24], page[36], page[64]) = (0b1_0010, 7, 7));
        assert_eq!((large.unit_bytes(), large.capacity_bytes()), (4096, 512 << 20));
        assert_eq!(
            parse(&|page| (page[24], page[36], page[64]) = (0b1_0010, 0, 7)).unit_bytes(),
            512
        );
        assert_eq!(
            parse(&|page| (page[24], page[36], page[64]) = (0b1_0010, 6, 6)).unit_bytes(),
            512
        );
        let protected = parse(&|page| (page[128], page[29]) = (8, 1));
        assert_eq!(protected.protection.map(|p| p.kind), Some(ProtectionType::One));
    }
}
