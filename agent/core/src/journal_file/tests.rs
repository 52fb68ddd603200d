//! Journal files made by hand after the published format, whole and broken.

use super::hash::{jenkins, siphash24};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const FILE_ID: [u8; 16] = *b"a file of a test";
const BUCKETS: u64 = 7;
const HEADER_BYTES: u64 = 208;

#[derive(Clone, Copy, Debug)]
struct Form {
    compact: bool,
    keyed: bool,
}

const FORMS: [Form; 4] = [
    Form { compact: false, keyed: false },
    Form { compact: false, keyed: true },
    Form { compact: true, keyed: false },
    Form { compact: true, keyed: true },
];

/// Writes a file as journald does: objects at the end, then the links to them.
struct Writer {
    bytes: Vec<u8>,
    form: Form,
    data: BTreeMap<Vec<u8>, u64>,
    /// Of each data object: its newest array, and how many items of it are used and there.
    arrays: BTreeMap<u64, (u64, u64, u64)>,
    objects: u64,
    entries: u64,
}

impl Writer {
    fn new(form: Form) -> Self {
        let mut bytes = vec![0; usize::try_from(HEADER_BYTES + 16 + BUCKETS * 16).unwrap()];
        bytes[..8].copy_from_slice(b"LPKSHHRH");
        bytes[12..16].copy_from_slice(&(u32::from(form.keyed) << 2 | u32::from(form.compact) << 4).to_le_bytes());
        bytes[16] = 1;
        bytes[24..40].copy_from_slice(&FILE_ID);
        bytes[72..88].copy_from_slice(b"one of many file");
        let mut writer = Self { bytes, form, data: BTreeMap::new(), arrays: BTreeMap::new(), objects: 1, entries: 0 };
        writer.put(88, HEADER_BYTES);
        writer.put(104, HEADER_BYTES + 16);
        writer.put(112, BUCKETS * 16);
        writer.note();
        writer
    }

    fn put(&mut self, at: u64, number: u64) {
        let at = usize::try_from(at).unwrap();
        self.bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }

    fn get(&self, at: u64) -> u64 {
        let at = usize::try_from(at).unwrap();
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    fn note(&mut self) {
        let end = u64::try_from(self.bytes.len()).unwrap();
        self.put(96, end - HEADER_BYTES);
        self.put(144, self.objects);
        self.put(152, self.entries);
        self.put(160, self.entries);
    }

    fn object(&mut self, kind: u8, flags: u8, body: &[u8]) -> u64 {
        let offset = u64::try_from(self.bytes.len()).unwrap();
        self.bytes.extend([kind, flags, 0, 0, 0, 0, 0, 0]);
        self.bytes.extend(u64::try_from(16 + body.len()).unwrap().to_le_bytes());
        self.bytes.extend(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.objects += 1;
        offset
    }

    fn data(&mut self, payload: &[u8]) -> u64 {
        if let Some(offset) = self.data.get(payload) {
            return *offset;
        }
        let hash = if self.form.keyed { siphash24(FILE_ID, payload) } else { jenkins(payload) };
        let mut body = vec![0; if self.form.compact { 56 } else { 48 }];
        body[..8].copy_from_slice(&hash.to_le_bytes());
        let (mut flags, mut stored) = (0, payload.to_vec());
        if payload.starts_with(b"ZSTD=") {
            flags = 4;
            let length = u8::try_from(payload.len()).unwrap();
            stored = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, length, length << 3 | 1, length >> 5, 0];
            stored.extend(payload);
        }
        if payload.starts_with(b"XZ=") {
            flags = 1;
        }
        body.extend(stored);
        let offset = self.object(1, flags, &body);
        let bucket = HEADER_BYTES + 16 + hash % BUCKETS * 16;
        match self.get(bucket) {
            0 => self.put(bucket, offset),
            _ => self.put(self.get(bucket + 8) + 24, offset),
        }
        self.put(bucket + 8, offset);
        self.data.insert(payload.to_vec(), offset);
        offset
    }

    fn entry(&mut self, fields: &[&str]) {
        let data: Vec<u64> = fields.iter().map(|field| self.data(field.as_bytes())).collect();
        self.entries += 1;
        let mut body = Vec::new();
        body.extend(self.entries.to_le_bytes());
        body.extend((1_000_000 * self.entries).to_le_bytes());
        body.extend([0; 32]);
        for offset in &data {
            if self.form.compact {
                body.extend(u32::try_from(*offset).unwrap().to_le_bytes());
            } else {
                body.extend(offset.to_le_bytes());
                body.extend([0; 8]);
            }
        }
        let entry = self.object(3, 0, &body);
        for offset in data {
            self.link(offset, entry);
        }
        self.note();
    }

    fn link(&mut self, data: u64, entry: u64) {
        let entries = self.get(data + 56);
        if entries == 0 {
            self.put(data + 40, entry);
        } else {
            let (mut array, mut used, mut room) = self.arrays.get(&data).copied().unwrap_or((0, 0, 0));
            let item = if self.form.compact { 4 } else { 8 };
            if used == room {
                room = if room == 0 { 2 } else { room * 2 };
                let next = self.object(6, 0, &vec![0; usize::try_from(8 + room * item).unwrap()]);
                self.put(if array == 0 { data + 48 } else { array + 16 }, next);
                (array, used) = (next, 0);
            }
            let at = usize::try_from(array + 24 + used * item).unwrap();
            let bytes = usize::try_from(item).unwrap();
            self.bytes[at..at + bytes].copy_from_slice(&entry.to_le_bytes()[..bytes]);
            self.arrays.insert(data, (array, used + 1, room));
        }
        self.put(data + 56, entries + 1);
    }
}

fn messages(file: &mut JournalFile<&[u8]>, unit: &str, from: u64) -> Option<Vec<String>> {
    let chain = file.find(format!("_SYSTEMD_UNIT={unit}").as_bytes())?;
    let offsets = file.offsets(chain, from, 1000);
    let mut entries = offsets.into_iter().filter_map(|offset| file.entry(offset, &["MESSAGE"])).collect::<Vec<_>>();
    entries.sort_by_key(|entry| entry.seqnum);
    Some(entries.iter().filter_map(|entry| Some(String::from_utf8_lossy(entry.field(0)?).into())).collect())
}

fn sample(form: Form) -> Writer {
    let mut writer = Writer::new(form);
    for n in 0..20 {
        let unit = if n % 2 == 0 { "_SYSTEMD_UNIT=a.service" } else { "_SYSTEMD_UNIT=b.service" };
        writer.entry(&["_PID=1", unit, &format!("MESSAGE=line {n}")]);
    }
    writer
}

#[test]
fn a_units_entries_are_found_by_the_files_own_index() {
    for form in FORMS {
        let mut writer = sample(form);
        let mut file = JournalFile::open(writer.bytes.as_slice()).unwrap();
        assert_eq!(messages(&mut file, "none.service", 0), None);
        let found = messages(&mut file, "a.service", 0).unwrap();
        assert_eq!(found.len(), 10, "{form:?}");
        assert_eq!((found[0].as_str(), found[9].as_str()), ("line 0", "line 18"));
        assert_eq!(messages(&mut file, "b.service", 8).unwrap(), ["line 17", "line 19"]);
        assert_eq!(messages(&mut file, "b.service", 10).unwrap(), Vec::<String>::new());
        // What is written later is there later.
        writer.entry(&["_PID=1", "_SYSTEMD_UNIT=b.service", "MESSAGE=line 20"]);
        let mut file = JournalFile::open(writer.bytes.as_slice()).unwrap();
        assert_eq!((file.header().entries, file.header().tail_seqnum), (21, 21));
        assert_eq!(messages(&mut file, "b.service", 10).unwrap(), ["line 20"]);
    }
}

#[test]
fn long_fields_are_unpacked_and_what_cannot_be_is_counted() {
    let mut writer = Writer::new(FORMS[3]);
    writer.entry(&["ZSTD=packed by zstd", "XZ=packed by xz", "MESSAGE=plain"]);
    let mut file = JournalFile::open(writer.bytes.as_slice()).unwrap();
    let chain = file.find(b"MESSAGE=plain").unwrap();
    let [offset] = file.offsets(chain, 0, 10).try_into().unwrap();
    let entry = file.entry(offset, &["MESSAGE", "ZSTD"]).unwrap();
    assert_eq!((entry.field(0), entry.field(1)), (Some(&b"plain"[..]), Some(&b"packed by zstd"[..])));
    assert_eq!((entry.realtime_usec, entry.unreadable_fields), (1_000_000, 1));
}

#[test]
fn other_files_and_unknown_features_are_refused() {
    let open = |bytes: &[u8]| JournalFile::open(bytes).map(|_| ()).unwrap_err();
    assert_eq!(open(b""), JournalError::NotAJournal);
    assert_eq!(open(&[0; 4096]), JournalError::NotAJournal);
    let mut bytes = sample(FORMS[0]).bytes;
    bytes[12] |= 1 << 6;
    assert_eq!(open(&bytes), JournalError::TooNew(1 << 6));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_broken_file_is_an_answer_and_an_end(
        form in 0usize..4,
        harm in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..40),
        cut in any::<proptest::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut bytes = sample(FORMS[form]).bytes;
        for (index, byte) in harm {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(mut file) = JournalFile::open(bytes.as_slice()) {
            for unit in ["a.service", "b.service"] {
                let found = messages(&mut file, unit, 0).unwrap_or_default();
                prop_assert!(found.len() <= 1000);
            }
            prop_assert!(file.refresh().is_ok());
        }
    }

    #[test]
    fn wild_numbers_do_not_lead_astray(
        form in 0usize..4,
        place in any::<proptest::sample::Index>(),
        number in prop_oneof![Just(u64::MAX), Just(0), Just(208), any::<u64>(), 0u64..5000],
    ) {
        let mut bytes = sample(FORMS[form]).bytes;
        let at = place.index(bytes.len() / 8) * 8;
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        if let Ok(mut file) = JournalFile::open(bytes.as_slice()) {
            let _ = messages(&mut file, "a.service", 0);
            let _ = messages(&mut file, "b.service", 5);
        }
    }
}
