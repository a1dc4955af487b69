//! Looking many extents up at once finds what looking up each finds.

mod common;

use common::{EXTENT, Rig, name, small_disk, small_format};
use extent::{ExtentIndex, FileId};

#[test]
fn many_at_once_find_what_each_finds() {
    let mut rig = Rig::new(small_disk(8, 1, 4096, 7), &small_format());
    let mut wanted = Vec::new();
    for number in 0..9u32 {
        // One file is longer than a chunk of its table.
        let extents = if number == 4 { 600 } else { u64::from(number) + 1 };
        let file = rig.register(&name(&format!("s/{number}")), extents * EXTENT, "v1");
        let file = file.expect("registers");
        for index in [0, number / 2, 599] {
            if u64::from(index) < extents && file.newest().extent(ExtentIndex(index)).is_none() {
                rig.fill(&file, index, 1).expect("fills");
            }
            // The same twice, in one group.
            wanted.extend([(file.id(), ExtentIndex(index)); 2]);
        }
        wanted.push((file.id(), ExtentIndex(u32::MAX)));
        wanted.push((FileId(u128::from(number)), ExtentIndex(0)));
    }
    let mut found = Vec::new();
    rig.tier.find_all(&wanted, &mut found);
    assert_eq!(found.len(), wanted.len());
    let mut resident = 0;
    for ((id, index), found) in wanted.iter().zip(&found) {
        let alone = rig.tier.file(*id).and_then(|file| file.newest().extent(*index));
        let seen = |extent: &Option<forebay_nvme_tier::Extent>| {
            extent
                .as_ref()
                .map(|e| (e.at(), e.index(), e.length(), e.checksums().map(Vec::from_iter)))
        };
        assert_eq!(seen(found), seen(&alone), "{id} {index}");
        resident += usize::from(found.is_some());
    }
    assert!(resident > 20 && resident < wanted.len(), "{resident}");
}
