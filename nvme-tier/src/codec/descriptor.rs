use extent::codec::{Reader, Writer};
use extent::{Attempt, ExtentIndex, FileId, Generation};

use super::{Found, PAD, Place, has_blank_block, is_sealed, is_zero, seal, was_ours};
use crate::bugs::{self, Bug};
use crate::layout::{checksums_in_page, descriptor_page_bytes};

const MAGIC: [u8; 4] = *b"4bED";
const VERSION: u16 = 1;

/// Which extent a slot holds. On the device its checksums follow, as many to a page as fit; each
/// page repeats the identity and carries its own CRC, so that pages of two writes never mix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// The file.
    pub file: FileId,
    /// Its generation.
    pub generation: Generation,
    /// The attempt that wrote the extent. It counts only under a file record of the same attempt.
    pub attempt: Attempt,
    /// Which extent of the file.
    pub index: ExtentIndex,
    /// Valid bytes of the slot.
    pub length: u32,
    /// Of two descriptors of the same extent the higher sequence counts.
    pub sequence: u64,
}

impl Descriptor {
    /// Bytes that a descriptor of `checksums` checksums takes of its stride.
    #[must_use]
    pub fn bytes(stride: u32, checksums: usize) -> usize {
        let page = descriptor_page_bytes(stride);
        checksums.div_ceil(checksums_in_page(page)).max(1) * page
    }

    /// Writes it to the front of `bytes`.
    ///
    /// # Panics
    /// If `bytes` is shorter than [`Descriptor::bytes`].
    pub fn encode(&self, place: &Place, stride: u32, checksums: &[u32], bytes: &mut [u8]) {
        let page_bytes = descriptor_page_bytes(stride);
        let used = Self::bytes(stride, checksums.len());
        let pages = narrow(used / page_bytes);
        let mut rest = checksums.chunks(checksums_in_page(page_bytes));
        for (number, page) in (0u16..).zip(bytes[..used].chunks_mut(page_bytes)) {
            page.fill(PAD);
            let place = place.offset(u64::from(number) * page_bytes as u64);
            let mut writer = Writer::new(page);
            writer
                .slice(&MAGIC)
                .u16(VERSION)
                .u16(number)
                .u128(place.tier.0)
                .u16(place.at.device.0)
                .u16(pages)
                .u64(place.at.offset)
                .u64(place.epoch)
                .u32(u32::try_from(checksums.len()).expect("bounded by the largest slot"))
                .u64(self.sequence)
                .u128(self.file.0)
                .u64(self.generation.0)
                .u64(self.attempt.0)
                .u32(self.index.0)
                .u32(self.length)
                .zeroes(4);
            for checksum in rest.next().unwrap_or_default() {
                writer.u32(*checksum);
            }
            seal(page);
        }
    }

    /// Reads what stands at a place; `bytes` is a whole stride.
    ///
    /// # Panics
    /// If `bytes` is shorter than its first page.
    #[must_use]
    pub fn decode(place: &Place, block_bytes: u32, bytes: &[u8]) -> Found<(Self, Box<[u32]>)> {
        let mut checksums = Vec::new();
        match Self::decode_into(place, block_bytes, bytes, &mut checksums) {
            Found::Sound(descriptor) => Found::Sound((descriptor, checksums.into_boxed_slice())),
            Found::Damaged(_) => Found::Damaged(None),
            Found::Blank => Found::Blank,
            Found::Stranger => Found::Stranger,
            Found::Torn => Found::Torn,
        }
    }

    /// As [`Descriptor::decode`], with the checksums in the place of whatever was in a list.
    ///
    /// # Panics
    /// If `bytes` is shorter than its first page.
    pub fn decode_into(
        place: &Place,
        block_bytes: u32,
        bytes: &[u8],
        checksums: &mut Vec<u32>,
    ) -> Found<Self> {
        let page_bytes = bytes.len().min(descriptor_page_bytes(u32::MAX));
        if is_zero(&bytes[..page_bytes.min(64)]) {
            return if is_zero(bytes) { Found::Blank } else { Found::Torn };
        }
        let first = match Page::decode(place, 0, block_bytes, &bytes[..page_bytes]) {
            Found::Sound(page) => page,
            Found::Stranger => return Found::Stranger,
            Found::Torn | Found::Blank => return Found::Torn,
            Found::Damaged(_) => return Found::Damaged(None),
        };
        let per_page = checksums_in_page(page_bytes);
        let total = first.checksums as usize;
        let pages = total.div_ceil(per_page).max(1);
        if usize::from(first.pages) != pages || pages * page_bytes > bytes.len() {
            return Found::Damaged(None);
        }
        checksums.clear();
        for (number, part) in (0u16..).zip(bytes.chunks(page_bytes)).take(pages) {
            let place = place.offset(u64::from(number) * page_bytes as u64);
            // The first was decoded above.
            match if number == 0 {
                Found::Sound(first)
            } else {
                Page::decode(&place, number, block_bytes, part)
            } {
                Found::Sound(page) if page == first => {}
                Found::Torn | Found::Blank => return Found::Torn,
                _ => return Found::Damaged(None),
            }
            let here = per_page.min(total - checksums.len());
            let sums = part[Page::HEADER_BYTES..].as_chunks::<4>().0;
            checksums.extend(sums[..here].iter().map(|sum| u32::from_le_bytes(*sum)));
        }
        Found::Sound(first.descriptor)
    }
}

/// The identity that every page of a descriptor repeats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    pages: u16,
    checksums: u32,
    descriptor: Descriptor,
}

impl Page {
    const HEADER_BYTES: usize = 100;

    fn decode(place: &Place, number: u16, block_bytes: u32, page: &[u8]) -> Found<Self> {
        let mut reader = Reader::new(page);
        let mut identity = [
            reader.array::<4>() == MAGIC,
            reader.u16() == VERSION,
            reader.u16() == number,
            reader.u128() == place.tier.0,
            reader.u16() == place.at.device.0,
            true,
            true,
        ];
        let pages = reader.u16();
        identity[5] = reader.u64() == place.at.offset || bugs::is(Bug::DescriptorAnywhere);
        identity[6] = reader.u64() == place.epoch || bugs::is(Bug::AnyEpoch);
        let sealed = is_sealed(page) || bugs::is(Bug::DescriptorUnchecked);
        if !sealed || identity.contains(&false) {
            if has_blank_block(page, (block_bytes as usize).min(page.len())) {
                return Found::Torn;
            }
            let ours = !sealed && was_ours(&identity);
            return if ours { Found::Damaged(None) } else { Found::Stranger };
        }
        let checksums = reader.u32();
        let sequence = reader.u64();
        let descriptor = Descriptor {
            file: FileId(reader.u128()),
            generation: Generation(reader.u64()),
            attempt: Attempt(reader.u64()),
            index: ExtentIndex(reader.u32()),
            length: reader.u32(),
            sequence,
        };
        Found::Sound(Self { pages, checksums, descriptor })
    }
}

fn narrow(pages: usize) -> u16 {
    u16::try_from(pages).expect("bounded by the largest slot")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::places;
    use super::*;

    fn descriptors() -> impl Strategy<Value = Descriptor> {
        any::<(u128, u64, u64, u32, u32, u64)>().prop_map(|fields| Descriptor {
            file: FileId(fields.0),
            generation: Generation(fields.1),
            attempt: Attempt(fields.2),
            index: ExtentIndex(fields.3),
            length: fields.4,
            sequence: fields.5,
        })
    }

    fn strides() -> impl Strategy<Value = (u32, Vec<u32>)> {
        (9u32..15).prop_flat_map(|shift| {
            let stride = 1u32 << shift;
            let page = descriptor_page_bytes(stride);
            let room = stride as usize / page * checksums_in_page(page);
            (Just(stride), proptest::collection::vec(1..=u32::MAX, 0..=room))
        })
    }

    proptest! {
        #[test]
        fn round_trip(descriptor in descriptors(), place in places(), (stride, sums) in strides()) {
            let mut bytes = vec![0; stride as usize];
            descriptor.encode(&place, stride, &sums, &mut bytes);
            let expected = Found::Sound((descriptor, sums.into_boxed_slice()));
            prop_assert_eq!(Descriptor::decode(&place, 512, &bytes), expected);
            let next = Place { epoch: place.epoch.wrapping_add(1), ..place };
            prop_assert_eq!(Descriptor::decode(&next, 512, &bytes), Found::Stranger);
        }

        #[test]
        fn a_flipped_bit_is_refused(
            descriptor in descriptors(), place in places(), (stride, sums) in strides(), at in any::<prop::sample::Index>()
        ) {
            let mut bytes = vec![0; stride as usize];
            descriptor.encode(&place, stride, &sums, &mut bytes);
            let bit = at.index(Descriptor::bytes(stride, sums.len()) * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = Descriptor::decode(&place, 512, &bytes);
            prop_assert!(matches!(found, Found::Damaged(_) | Found::Stranger), "{found:?}");
        }

        #[test]
        fn half_of_it_is_torn(descriptor in descriptors(), place in places(), (stride, sums) in strides(), at in any::<prop::sample::Index>()) {
            let mut bytes = vec![0; stride as usize];
            descriptor.encode(&place, stride, &sums, &mut bytes);
            let used = Descriptor::bytes(stride, sums.len());
            let block = at.index(used / 512) * 512;
            bytes[block..block + 512].fill(0);
            let found = Descriptor::decode(&place, 512, &bytes);
            let expected = if is_zero(&bytes) { Found::Blank } else { Found::Torn };
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn garbage_never_panics(place in places(), bytes in proptest::collection::vec(any::<u8>(), 512), claim in any::<[u16; 2]>()) {
            prop_assert_eq!(Descriptor::decode(&place, 512, &bytes), Found::Stranger);
            // A page that claims more pages and checksums than there are, under a valid CRC.
            let descriptor = Descriptor {
                file: FileId(0), generation: Generation(0), attempt: Attempt(0),
                index: ExtentIndex(0), length: 0, sequence: 0,
            };
            let mut page = [0; 512];
            descriptor.encode(&place, 512, &[], &mut page);
            page[26..28].copy_from_slice(&claim[0].to_le_bytes());
            page[44..46].copy_from_slice(&claim[1].to_le_bytes());
            seal(&mut page);
            let _found = Descriptor::decode(&place, 512, &page);
        }
    }
}
