//! The tables: the same packets through the function on the host and through each program in the
//! kernel.

use ebpf_filter::{AppPolicy, Filter, Mode, PolicyTable, Verdict};
use ebpf_filter_common::{Start, decide, parse};

use crate::kernel::alone;
use crate::run::Program;
use crate::table::{Row, dedicated, dedicated_rows, prefixes, shared, shared_rows};

#[test]
fn the_host_function_judges_every_row_as_expected() {
    let rows = dedicated_rows();
    assert!(rows.len() >= 60, "{} rows", rows.len());
    check_host(dedicated(), &rows);
    check_host(shared(), &shared_rows());
}

#[test]
fn the_xdp_program_judges_as_the_host_function() {
    alone(|own| {
        let config = ebpf_filter::Config { mode: Mode::XdpGeneric, ..own.config() };
        let mut filter = Filter::open(&config).unwrap();
        let program = Program::pinned(&own.program("admit_xdp"));
        check_kernel(&mut filter, dedicated(), &dedicated_rows(), |row| {
            XDP.of(&program, &row.frame)
        });
        check_kernel(&mut filter, shared(), &shared_rows(), |row| XDP.of(&program, &row.frame));
    });
}

#[test]
fn the_tcx_program_judges_as_the_host_function() {
    alone(|own| {
        let config = ebpf_filter::Config { mode: Mode::Tcx, ..own.config() };
        let mut filter = Filter::open(&config).unwrap();
        let program = Program::pinned(&own.program("admit_tcx"));
        check_kernel(&mut filter, dedicated(), &dedicated_rows(), |row| {
            TCX.of(&program, &row.frame)
        });
        check_kernel(&mut filter, shared(), &shared_rows(), |row| TCX.of(&program, &row.frame));
    });
}

#[test]
fn the_cgroup_program_judges_as_the_host_function() {
    alone(|own| {
        let config = ebpf_filter::Config { mode: Mode::Cgroup, ..own.config() };
        let mut filter = Filter::open(&config).unwrap();
        let program = Program::pinned(&own.program("admit_cgroup"));
        // It sees what the stack takes for IP; nothing else ever gets there.
        let ip = |row: &Row| match row.frame.get(12..15) {
            Some([0x08, 0x00, first]) => first >> 4 == 4,
            Some([0x86, 0xdd, first]) => first >> 4 == 6,
            _ => false,
        };
        let rows: Vec<Row> = dedicated_rows().into_iter().filter(ip).collect();
        assert!(rows.len() >= 60, "{} rows", rows.len());
        check_kernel(&mut filter, dedicated(), &rows, |row| CGROUP.of(&program, &row.frame));
    });
}

fn check_host(apps: Vec<AppPolicy>, rows: &[Row]) {
    let table = PolicyTable::new(&prefixes(), apps.into_iter());
    for Row { name, frame, expected } in rows {
        let decision = decide(&parse(frame.as_slice(), Start::Ethernet), &table);
        assert_eq!(decision.verdict, *expected, "{name}");
    }
}

fn check_kernel(
    filter: &mut Filter,
    apps: Vec<AppPolicy>,
    rows: &[Row],
    run: impl Fn(&Row) -> Option<bool>,
) {
    let table = PolicyTable::new(&prefixes(), apps.clone().into_iter());
    filter.replace_all(apps.into_iter()).unwrap();
    let mut ran = 0;
    for row in rows {
        let before = filter.counters();
        let Some(passed) = run(row) else { continue };
        let after = filter.counters();
        let verdicts: Vec<Verdict> =
            Verdict::ALL.into_iter().filter(|of| after.of(*of) != before.of(*of)).collect();
        assert_eq!(verdicts, [row.expected], "{}", row.name);
        assert_eq!(passed, row.expected.passes(), "{}", row.name);
        let host = decide(&parse(row.frame.as_slice(), Start::Ethernet), &table);
        assert_eq!(verdicts, [host.verdict], "{}", row.name);
        ran += 1;
    }
    assert!(ran * 2 > rows.len(), "{ran} of {} rows ran", rows.len());
}

/// How a kind of program says that a packet goes on, or that it does not.
struct Answers {
    pass: u32,
    drop: u32,
    /// The shortest frames that the kernel takes for a test of this kind of program: IPv4, IPv6,
    /// anything else.
    shortest: [usize; 3],
}

const XDP: Answers = Answers { pass: 2, drop: 1, shortest: [14; 3] };
const TCX: Answers = Answers { pass: u32::MAX, drop: 2, shortest: [14 + 20, 14 + 40, 14 + 1] };
const CGROUP: Answers = Answers { pass: 1, drop: 0, shortest: TCX.shortest };

// === impl Answers ===

impl Answers {
    /// Whether the packet passes; `None` for one that the kernel does not take for a test.
    fn of(&self, program: &Program, frame: &[u8]) -> Option<bool> {
        let [v4, v6, other] = self.shortest;
        let shortest = match frame.get(12..14) {
            Some([0x08, 0x00]) => v4,
            Some([0x86, 0xdd]) => v6,
            _ => other,
        };
        if frame.len() < shortest {
            return None;
        }
        let (answer, _) = program.run(frame, 1).unwrap();
        assert!([self.pass, self.drop].contains(&answer), "{answer}");
        Some(answer == self.pass)
    }
}
