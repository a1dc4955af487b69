//! Recognises what must not be overwritten.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use extent::{Kind, Result};

/// Bytes read at the front: up to the end of ZFS's first label.
const HEAD_BYTES: u64 = 256 << 10;

/// Bytes read at the back: MD's old superblock and the second partition table are in there.
const TAIL_BYTES: u64 = 128 << 10;

/// Names and the bytes that tell them, at offsets from the front, as their owners define them.
const SIGNATURES: &[(&str, usize, &[u8])] = &[
    ("an ext2, ext3 or ext4 file system", 1080, &[0x53, 0xef]),
    ("an XFS file system", 0, b"XFSB"),
    ("a Btrfs file system", 65600, b"_BHRfS_M"),
    ("an F2FS file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a FAT file system", 82, b"FAT32   "),
    ("a FAT file system", 54, b"FAT16   "),
    ("a FAT file system", 54, b"FAT12   "),
    ("a ReiserFS file system", 65588, b"ReIsEr"),
    ("a JFS file system", 32768, b"JFS1"),
    ("an EROFS file system", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("a SquashFS file system", 0, b"hsqs"),
    ("an ISO 9660 file system", 32769, b"CD001"),
    ("an encrypted LUKS volume", 0, b"LUKS\xba\xbe"),
    ("a member of an MD RAID", 0, &MD_MAGIC),
    ("a member of an MD RAID", 4096, &MD_MAGIC),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("swap space", 4086, b"SWAP-SPACE"),
    ("swap space", 65526, b"SWAPSPACE2"),
    ("a GUID partition table", 512, b"EFI PART"),
    ("a GUID partition table", 4096, b"EFI PART"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("a Ceph BlueStore device", 0, b"bluestore block device"),
    ("an SPDK blobstore", 0, b"SPDKBLOB"),
];

const MD_MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
const ZFS_MAGIC: u64 = 0x00ba_b10c;

/// Refuses a device that holds something known; see `Media::check_foreign`. `read` gives bytes of
/// the device: how many, from an offset on.
pub(super) fn check(
    path: &Path,
    length: u64,
    read: &mut dyn FnMut(u64, u64) -> Result<Vec<u8>>,
) -> Result<()> {
    let head = read(0, length.min(HEAD_BYTES))?;
    let back = length.min(TAIL_BYTES);
    let tail = read(length - back, back)?;
    match find(&head, &tail, length) {
        None => Ok(()),
        Some(name) => Err(Kind::Denied.error(format!(
            "{} holds {name}, which formatting would destroy: name another, or force it if that \
             is meant",
            path.display()
        ))),
    }
}

/// What the first and the last bytes of a device of `length` bytes say is there.
fn find(head: &[u8], tail: &[u8], length: u64) -> Option<&'static str> {
    let holds = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    let known = SIGNATURES.iter().find(|(_, at, magic)| holds(*at, magic));
    if let Some((name, ..)) = known {
        return Some(name);
    }
    if holds(510, &[0x55, 0xaa]) && (0..4).any(|entry| is_partition(head, 446 + 16 * entry)) {
        return Some("an MBR partition table");
    }
    if zfs_uberblock(head) {
        return Some("a member of a ZFS pool");
    }
    find_at_the_end(tail, length)
}

/// An entry of a master boot record: a status that is one of two values, a type and a size.
fn is_partition(head: &[u8], at: usize) -> bool {
    let entry = &head[at..at + 16];
    matches!(entry[0], 0 | 0x80) && entry[4] != 0 && entry[12..].iter().any(|byte| *byte != 0)
}

/// ZFS's ring of uberblocks is in the second half of its first label, in either byte order.
fn zfs_uberblock(head: &[u8]) -> bool {
    let ring = head.get(128 << 10..).unwrap_or_default();
    ring.chunks_exact(1024)
        .any(|block| block[..8] == ZFS_MAGIC.to_le_bytes() || block[..8] == ZFS_MAGIC.to_be_bytes())
}

fn find_at_the_end(tail: &[u8], length: u64) -> Option<&'static str> {
    let start = length - tail.len() as u64;
    let holds = |at: Option<u64>, magic: &[u8]| {
        let from = at.and_then(|at| usize::try_from(at.checked_sub(start)?).ok());
        from.is_some_and(|from| tail.get(from..from + magic.len()) == Some(magic))
    };
    // MD 1.0 is at least 8 KiB from the end, on a 4 KiB boundary; 0.90 in the last whole 64 KiB.
    let sectors = length / 512;
    let md_1_0 = sectors.checked_sub(16).map(|sector| (sector & !7) * 512);
    let md_0_90 = (length & !0xffff).checked_sub(1 << 16);
    if holds(md_1_0, &MD_MAGIC) || holds(md_0_90, &MD_MAGIC) {
        return Some("a member of an MD RAID");
    }
    let table = |block| holds(length.checked_sub(block), b"EFI PART");
    (table(512) || table(4096)).then_some("a GUID partition table (the copy at its end)")
}

/// By what a block device is in use: a mount of it or of a partition, or something else that has
/// claimed it, such as swap, a RAID, a volume group or another node.
pub(super) fn in_use(path: &Path) -> Option<String> {
    if let Some(place) = mounted_at(path) {
        return Some(format!("{} is mounted at {place}: unmount it", path.display()));
    }
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path);
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)).then(|| {
        format!(
            "{} is in use by another process, swap, a RAID or a volume group: see `lsblk` and \
             `fuser -v`, and stop that first",
            path.display()
        )
    })
}

/// Where a block device or one of its partitions is mounted.
pub(super) fn mounted_at(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.file_type().is_block_device() {
        return None;
    }
    let device = metadata.rdev();
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut numbers = vec![format!("{}:{}", libc::major(device), libc::minor(device))];
    let folder = format!("/sys/dev/block/{}", numbers[0]);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let number = fs::read_to_string(entry.path().join("dev"));
        numbers.extend(number.map(|number| number.trim().to_owned()));
    }
    mount_point(&mounts, &numbers, path).map(str::to_owned)
}

/// Where one of the devices is mounted; fields as in proc_pid_mountinfo(5). File systems of
/// several devices show a number of their own, hence the look at the source as well.
fn mount_point<'m>(mounts: &'m str, numbers: &[String], path: &Path) -> Option<&'m str> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let number = fields.nth(2)?;
        let place = fields.nth(1)?;
        let source = line.split(" - ").nth(1)?.split(' ').nth(1)?;
        let same = numbers.iter().any(|own| own == number) || Path::new(source) == path;
        same.then_some(place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(length: usize, at: usize, magic: &[u8]) -> Option<&'static str> {
        let mut bytes = vec![0; length];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        let head = &bytes[..length.min(256 << 10)];
        find(head, &bytes[length.saturating_sub(128 << 10)..], length as u64)
    }

    #[test]
    fn known_signatures_are_found_and_others_are_not() {
        for (name, at, magic) in SIGNATURES {
            assert_eq!(found(1 << 20, *at, magic), Some(*name));
            assert_eq!(found(1 << 20, *at + 1, magic), None, "{name} one byte off");
        }
        assert_eq!(
            found(1 << 20, 200 << 10, &ZFS_MAGIC.to_be_bytes()),
            Some("a member of a ZFS pool")
        );
        let length = (1 << 20) + 12 * 512;
        for at in [length - 4096, length - 512] {
            assert!(found(length, at, b"EFI PART").is_some_and(|name| name.contains("GUID")));
        }
        // 2060 sectors: 2044 rounded down to a multiple of 8 is 2040.
        assert_eq!(found(length, 2040 * 512, &MD_MAGIC), Some("a member of an MD RAID"));
        assert_eq!(found(length, (1 << 20) - (1 << 16), &MD_MAGIC), Some("a member of an MD RAID"));
        assert_eq!(find(&[], &[], 0), None);
    }

    #[test]
    fn a_boot_signature_alone_is_no_partition_table() {
        let mut head = vec![0; 4096];
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(find(&head, &[], 0), None);
        head[446 + 16 + 4] = 0x83;
        head[446 + 16 + 12] = 1;
        assert_eq!(find(&head, &[], 0), Some("an MBR partition table"));
    }

    #[test]
    fn mounts_are_found_by_number_and_by_source() {
        let mounts = "22 1 254:1 / /srv/data rw,relatime shared:1 - ext4 /dev/vdb1 rw\n\
                      30 1 0:41 / /pool rw - btrfs /dev/none-such rw\n";
        let at =
            |number: &str, path: &str| mount_point(mounts, &[number.to_owned()], Path::new(path));
        assert_eq!(at("254:1", "/dev/x"), Some("/srv/data"));
        assert_eq!(at("254:16", "/dev/none-such"), Some("/pool"));
        assert_eq!(at("254:16", "/dev/x"), None);
    }
}
