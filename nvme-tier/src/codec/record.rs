use extent::codec::{Reader, Writer};
use extent::{Attempt, ExtentIndex, FileId, FileName, Generation, SourceVersion};

use super::{Found, PAD, Place, has_blank_block, is_sealed, is_zero, seal, was_ours};
use crate::bugs::{self, Bug};
use crate::layout::{RECORD_BYTES, extent_count, extent_length};

const MAGIC: [u8; 4] = *b"4bFR";
const VERSION: u16 = 1;

/// Where the sequence, the file's id behind it, and the flags stand.
const SEQUENCE_AT: usize = 40;
const FLAGS_AT: usize = 100;

const DIRTY: u16 = 1;
const WRITTEN: u16 = 2;
const TOMBSTONE: u16 = 4;
const HAS_SOURCE: u16 = 8;
const TWICE: u16 = 16;
const BLIND: u16 = 32;
const KNOWN_FLAGS: u16 = DIRTY | WRITTEN | TOMBSTONE | HAS_SOURCE | TWICE | BLIND;

/// Something wrong with a file that a person or the silo has to settle.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mark {
    /// The silo changed independently of what was written here. Both are kept.
    Conflict,
    /// The silo no longer has the version that this generation was taken from.
    Lost,
    /// A dirty extent, descriptor or record is damaged. Nothing is freed, and reads fail.
    Quarantined,
}

impl Mark {
    const fn code(mark: Option<Self>) -> u8 {
        match mark {
            None => 0,
            Some(Self::Conflict) => 1,
            Some(Self::Lost) => 2,
            Some(Self::Quarantined) => 3,
        }
    }

    fn from_code(code: u8) -> Option<Option<Self>> {
        [None, Some(Self::Conflict), Some(Self::Lost), Some(Self::Quarantined)]
            .into_iter()
            .find(|mark| Self::code(*mark) == code)
    }
}

/// All that is durable about a file besides its extents. Of the records of one file, the valid one
/// of the highest sequence counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileRecord {
    /// The file's id: the hash of its name.
    pub file: FileId,
    /// Its name.
    pub name: FileName,
    /// The committed generation.
    pub generation: Generation,
    /// The attempt that made it. Descriptors of any other do not count.
    pub attempt: Attempt,
    /// Which record of the file is the newest.
    pub sequence: u64,
    /// Bytes of the file.
    pub length: u64,
    /// Bytes of a full extent.
    pub extent_bytes: u64,
    /// How many extents were committed; the others were holes. Meaningful while dirty: if fewer
    /// descriptors are found, some are lost, and the absent extents cannot be told from holes.
    pub extents_written: u32,
    /// Whether the silo does not have this generation yet.
    pub dirty: bool,
    /// Whether it was written here.
    pub written: bool,
    /// Whether each of its extents was committed on two devices.
    pub twice: bool,
    /// Whether the file was forgotten: older records of it are void.
    pub tombstone: bool,
    /// Whether its file was not known when it was registered, while a device was absent that may have
    /// had a record of it. It stays so from one registration to the next, until somebody writes or all
    /// devices are there.
    pub blind: bool,
    /// What is wrong with it.
    pub mark: Option<Mark>,
    /// Clean: the silo's version that it equals. Dirty: what the silo is believed to hold.
    pub source: Option<SourceVersion>,
}

impl FileRecord {
    /// Writes it to the first [`RECORD_BYTES`] of `bytes`.
    ///
    /// # Panics
    /// If `bytes` is shorter.
    pub fn encode(&self, place: &Place, bytes: &mut [u8]) {
        let bytes = &mut bytes[..RECORD_BYTES];
        bytes.fill(PAD);
        let flag = |set: bool, flag: u16| if set { flag } else { 0 };
        let flags = flag(self.dirty, DIRTY)
            | flag(self.written, WRITTEN)
            | flag(self.tombstone, TOMBSTONE)
            | flag(self.source.is_some(), HAS_SOURCE)
            | flag(self.twice, TWICE)
            | flag(self.blind, BLIND);
        let source = self.source.as_ref().map_or("", SourceVersion::as_str);
        Writer::new(bytes)
            .slice(&MAGIC)
            .u16(VERSION)
            .u16(place.at.device.0)
            .u128(place.tier.0)
            .u64(place.at.offset)
            .u64(place.epoch)
            .u64(self.sequence)
            .u128(self.file.0)
            .u64(self.generation.0)
            .u64(self.attempt.0)
            .u64(self.length)
            .u64(self.extent_bytes)
            .u32(self.extents_written)
            .u16(flags)
            .u8(Mark::code(self.mark))
            .u8(PAD)
            .u16(short(self.name.silo().len()))
            .u16(short(self.name.key().len()))
            .u16(short(source.len()))
            .slice(self.name.silo().as_bytes())
            .slice(self.name.key().as_bytes())
            .slice(source.as_bytes());
        seal(bytes);
    }

    /// Bytes of one of its extents.
    #[must_use]
    pub fn extent_length(&self, index: ExtentIndex) -> u32 {
        extent_length(self.length, self.extent_bytes, index)
    }

    /// Reads what stands at a place. What a damaged record says is only given where its name still
    /// hashes to its id.
    ///
    /// # Panics
    /// If `bytes` is shorter than [`RECORD_BYTES`].
    #[must_use]
    pub fn decode(place: &Place, block_bytes: u32, bytes: &[u8]) -> Found<Self> {
        let bytes = &bytes[..RECORD_BYTES];
        if is_zero(&bytes[..64]) {
            return if is_zero(bytes) { Found::Blank } else { Found::Torn };
        }
        let mut reader = Reader::new(bytes);
        let identity = [
            reader.array::<4>() == MAGIC,
            reader.u16() == VERSION,
            reader.u16() == place.at.device.0,
            reader.u128() == place.tier.0,
            reader.u64() == place.at.offset || bugs::is(Bug::RecordAnywhere),
            reader.u64() == place.epoch,
        ];
        let sealed = is_sealed(bytes) || bugs::is(Bug::RecordUnchecked);
        if sealed && !identity.contains(&false) {
            return Self::fields(&mut reader).map_or(Found::Damaged(None), Found::Sound);
        }
        if has_blank_block(bytes, (block_bytes as usize).min(RECORD_BYTES))
            && !bugs::is(Bug::TornTakenForDamaged)
        {
            return Found::Torn;
        }
        if sealed || !was_ours(&identity) {
            return Found::Stranger;
        }
        let legible = Self::fields(&mut reader).filter(|record| record.name.id() == record.file);
        Found::Damaged(legible)
    }

    /// What a damaged record still says of whose it was, each part true only if it is not what was
    /// damaged: file, sequence, and whether it was dirty.
    pub(crate) fn trace(bytes: &[u8]) -> (FileId, u64, bool) {
        let mut reader = Reader::new(&bytes[..RECORD_BYTES]);
        reader.skip(SEQUENCE_AT);
        let (sequence, file) = (reader.u64(), FileId(reader.u128()));
        reader.skip(FLAGS_AT - SEQUENCE_AT - 24);
        (file, sequence, reader.u16() & DIRTY != 0)
    }

    /// Whether whoever made it could not know of a dirty record on a device that was absent: it does
    /// not replace one.
    pub(crate) fn is_blind(&self) -> bool {
        self.blind && !self.dirty && !self.written
    }

    fn fields(reader: &mut Reader<'_>) -> Option<Self> {
        let sequence = reader.u64();
        let file = FileId(reader.u128());
        let (generation, attempt) = (Generation(reader.u64()), Attempt(reader.u64()));
        let (length, extent_bytes) = (reader.u64(), reader.u64());
        let extents_written = reader.u32();
        let flags = reader.u16();
        let mark = Mark::from_code(reader.u8())?;
        reader.skip(1);
        let lengths = [reader.u16(), reader.u16(), reader.u16()].map(usize::from);
        let sound = extent_bytes.is_power_of_two()
            && extent_count(length, extent_bytes).is_ok_and(|count| extents_written <= count)
            && flags & !KNOWN_FLAGS == 0
            && reader.position() + lengths.iter().sum::<usize>() + 4 <= RECORD_BYTES;
        if !sound {
            return None;
        }
        let mut text = |length| std::str::from_utf8(reader.slice(length)).ok();
        let [silo, key, source] = [text(lengths[0])?, text(lengths[1])?, text(lengths[2])?];
        let has = |flag| flags & flag != 0;
        let source = has(HAS_SOURCE).then(|| SourceVersion::new(source)).transpose().ok()?;
        Some(Self {
            file,
            name: FileName::new(silo, key).ok()?,
            generation,
            attempt,
            sequence,
            length,
            extent_bytes,
            extents_written,
            dirty: has(DIRTY),
            written: has(WRITTEN),
            twice: has(TWICE),
            tombstone: has(TOMBSTONE),
            blind: has(BLIND),
            mark,
            source,
        })
    }
}

fn short(length: usize) -> u16 {
    u16::try_from(length).expect("names and versions are bounded")
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::super::testing::{location, places};
    use super::*;

    fn records() -> impl Strategy<Value = FileRecord> {
        let text = (
            "[a-z0-9._-]{1,64}",
            proptest::collection::vec("[a-zA-Z/é ]", 1..500),
            proptest::option::of("[ -~]{0,256}"),
        );
        (text, any::<(u64, u64, u64, u8)>(), (0u64..1 << 36, 16u32..26, 0u8..4)).prop_map(
            |((silo, key, source), ids, sizes)| FileRecord {
                file: FileId::of(&silo, &key.concat()),
                name: FileName::new(silo, key.concat()).expect("a good name"),
                generation: Generation(ids.0),
                attempt: Attempt(ids.1),
                sequence: ids.2,
                length: sizes.0,
                extent_bytes: 1 << sizes.1,
                extents_written: u32::from(sizes.0 > 0),
                dirty: ids.3 & 1 != 0,
                written: ids.3 & 2 != 0,
                twice: ids.3 & 8 != 0,
                tombstone: ids.3 & 4 != 0,
                blind: ids.3 & 16 != 0,
                mark: Mark::from_code(sizes.2).expect("a known code"),
                source: source.map(|text| SourceVersion::new(text).expect("short")),
            },
        )
    }

    #[test]
    fn the_longest_names_fit() {
        let name = FileName::new("s".repeat(64), "k".repeat(1024)).expect("a good name");
        let record = FileRecord {
            file: name.id(),
            name,
            generation: Generation(1),
            attempt: Attempt(2),
            sequence: 3,
            length: 4,
            extent_bytes: 4096,
            extents_written: 1,
            dirty: true,
            written: true,
            twice: true,
            tombstone: false,
            blind: false,
            mark: None,
            source: Some(SourceVersion::new("v".repeat(256)).expect("short")),
        };
        let place = Place { tier: super::super::TierId(1), at: location(0, 8192), epoch: 1 };
        let mut bytes = [0; RECORD_BYTES];
        record.encode(&place, &mut bytes);
        assert_eq!(FileRecord::decode(&place, 512, &bytes), Found::Sound(record));
    }

    proptest! {
        #[test]
        fn round_trip(record in records(), place in places()) {
            let mut bytes = [0; RECORD_BYTES];
            record.encode(&place, &mut bytes);
            prop_assert_eq!(FileRecord::decode(&place, 512, &bytes), Found::Sound(record));
            prop_assert_eq!(FileRecord::decode(&place.offset(2048), 512, &bytes), Found::Stranger);
        }

        #[test]
        fn a_flipped_bit_is_refused_and_the_rest_stays_legible(
            record in records(), place in places(), bit in 0..RECORD_BYTES * 8
        ) {
            let mut bytes = [0; RECORD_BYTES];
            record.encode(&place, &mut bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
            match FileRecord::decode(&place, 512, &bytes) {
                Found::Damaged(Some(left)) => prop_assert_eq!(left.name, record.name),
                Found::Damaged(None) | Found::Stranger => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn any_missing_block_makes_it_torn(record in records(), place in places(), block in 0usize..4) {
            let mut bytes = [0; RECORD_BYTES];
            record.encode(&place, &mut bytes);
            bytes[block * 512..(block + 1) * 512].fill(0);
            prop_assert_eq!(FileRecord::decode(&place, 512, &bytes), Found::Torn);
        }

        #[test]
        fn garbage_never_panics(
            record in records(), place in places(), at in 64usize..140, garbage in any::<[u8; 8]>()
        ) {
            let mut bytes = [0; RECORD_BYTES];
            record.encode(&place, &mut bytes);
            bytes[at..at + 8].copy_from_slice(&garbage);
            let _unsealed = FileRecord::decode(&place, 512, &bytes);
            seal(&mut bytes);
            let _sealed = FileRecord::decode(&place, 512, &bytes);
        }
    }
}
