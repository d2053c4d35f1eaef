//! The heap as a pprof profile: `profile.proto` of github.com/google/pprof, gzipped.
//!
//! Addresses are those of the file, with its build id, so that `pprof` finds names by itself where
//! ours are not there yet.

use std::collections::HashMap;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use super::report::{Call, Frame, Report};

#[derive(Clone, PartialEq, Message)]
pub(super) struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    memory_start: u64,
    #[prost(uint64, tag = "3")]
    memory_limit: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(int64, tag = "6")]
    build_id: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// The gzipped profile of all stacks in `report`.
pub fn render(report: &Report) -> Vec<u8> {
    let bytes = profile(report).encode_to_vec();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&bytes).and_then(|()| gzip.finish()).expect("a Vec takes everything")
}

#[derive(Default)]
struct Writer {
    profile: Profile,
    strings: HashMap<String, i64>,
    locations: HashMap<(String, u64), u64>,
    functions: HashMap<(String, String), u64>,
    mappings: HashMap<String, u64>,
}

pub(super) fn profile(report: &Report) -> Profile {
    let mut writer = Writer::default();
    // The table's first string is the empty one.
    writer.string("");
    let space = ValueType { kind: writer.string("inuse_space"), unit: writer.string("bytes") };
    let objects = ValueType { kind: writer.string("inuse_objects"), unit: writer.string("count") };
    writer.profile.sample_type = vec![objects, space];
    writer.profile.default_sample_type = space.kind;
    writer.profile.period_type =
        Some(ValueType { kind: writer.string("space"), unit: writer.string("bytes") });
    writer.profile.period = report.interval_bytes as i64;
    writer.profile.time_nanos = report.at_unix_ms as i64 * 1_000_000;
    // The program is the first mapping, whether a stack goes through it or not.
    writer.mapping("", &report.build_id);
    for stack in &report.stacks {
        let location_id =
            stack.frames.iter().map(|frame| writer.location(frame, &report.build_id)).collect();
        let mut label = |key, value| Label { key: writer.string(key), str: writer.string(value) };
        let label =
            vec![label("subsystem", stack.subsystem.name()), label("state", stack.state.name())];
        let value = vec![stack.samples as i64, stack.bytes as i64];
        writer.profile.sample.push(Sample { location_id, value, label });
    }
    writer.profile
}

// === impl Writer ===

impl Writer {
    fn string(&mut self, text: &str) -> i64 {
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = self.profile.string_table.len() as i64;
        self.profile.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }

    fn mapping(&mut self, module: &str, build_id: &str) -> u64 {
        if let Some(id) = self.mappings.get(module) {
            return *id;
        }
        let id = self.profile.mapping.len() as u64 + 1;
        let (name, build_id) = if module.is_empty() { ("ferrule", build_id) } else { (module, "") };
        let (filename, build_id) = (self.string(name), self.string(build_id));
        // Each file is given a part of the address space of its own, as its addresses begin at 0.
        let memory_start = (id - 1) << 48;
        self.profile.mapping.push(Mapping {
            id,
            memory_start,
            memory_limit: memory_start + (1 << 48),
            filename,
            build_id,
            has_functions: module.is_empty(),
        });
        self.mappings.insert(module.to_owned(), id);
        id
    }

    fn location(&mut self, frame: &Frame, build_id: &str) -> u64 {
        let Frame { offset, module, calls } = frame;
        let offset = u64::from_str_radix(offset.trim_start_matches("0x"), 16).unwrap_or_default();
        let key = (module.clone(), offset);
        if let Some(id) = self.locations.get(&key) {
            return *id;
        }
        let mapping_id = self.mapping(module, build_id);
        let mut line: Vec<Line> = calls.iter().map(|call| self.line(call)).collect();
        if line.is_empty() && !module.is_empty() {
            let call = Call { function: frame.label(), place: String::new() };
            line.push(self.line(&call));
        }
        let id = self.profile.location.len() as u64 + 1;
        let address = offset + ((mapping_id - 1) << 48);
        self.profile.location.push(Location { id, mapping_id, address, line });
        self.locations.insert(key, id);
        id
    }

    fn line(&mut self, call: &Call) -> Line {
        let Call { function, place } = call;
        let (file, line) = place.rsplit_once(':').unwrap_or((place, ""));
        let key = (function.clone(), file.to_owned());
        let function_id = if let Some(id) = self.functions.get(&key) {
            *id
        } else {
            let id = self.profile.function.len() as u64 + 1;
            let (name, filename) = (self.string(function), self.string(file));
            self.profile.function.push(Function { id, name, system_name: name, filename });
            self.functions.insert(key, id);
            id
        };
        Line { function_id, line: line.parse().unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::super::report::tests::{report, stack};
    use super::*;

    #[test]
    fn a_profile_says_where_bytes_are_and_in_which_file() {
        let mut told = report(vec![stack(100, &["inner", "main"]), stack(50, &["other", "main"])]);
        told.stacks[1].frames.push(Frame {
            offset: "0x20".to_owned(),
            module: "libc.so.6".to_owned(),
            calls: Vec::new(),
        });
        let mut bytes = Vec::new();
        let packed = render(&told);
        flate2::read::GzDecoder::new(&*packed).read_to_end(&mut bytes).expect("it is gzip");
        let profile = Profile::decode(&*bytes).expect("it is a profile");
        let text = |index: i64| profile.string_table[index as usize].as_str();
        assert_eq!(text(0), "");
        assert_eq!(text(profile.default_sample_type), "inuse_space");
        assert_eq!(profile.sample[0].value, [1, 100]);
        let names = |sample: &Sample| -> Vec<&str> {
            let locations = sample.location_id.iter().map(|id| &profile.location[*id as usize - 1]);
            let lines = locations.flat_map(|location| &location.line);
            lines.map(|line| text(profile.function[line.function_id as usize - 1].name)).collect()
        };
        assert_eq!(names(&profile.sample[0]), ["inner", "main"]);
        assert_eq!(names(&profile.sample[1]), ["other", "main", "libc.so.6+0x20"]);
        assert_eq!(profile.location.len(), 4, "what is the same is said once");
        let files: Vec<_> = profile.mapping.iter().map(|mapping| text(mapping.filename)).collect();
        assert_eq!(files, ["ferrule", "libc.so.6"]);
        assert_eq!(text(profile.mapping[0].build_id), "b0");
        for location in &profile.location {
            let mapping = &profile.mapping[location.mapping_id as usize - 1];
            assert!((mapping.memory_start..mapping.memory_limit).contains(&location.address));
        }
    }
}
