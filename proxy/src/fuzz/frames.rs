//! HTTP/2 frame headers, as they are counted.

use super::cut_in_many_ways;
use crate::http::h2::meter::{Excess, Meter};

/// However the bytes are cut, the same frames are counted, and those that are there.
pub fn meter(bytes: &[u8]) {
    let mut whole = Meter::new();
    whole.read(bytes);
    cut_in_many_ways(bytes, |pieces| {
        let mut meter = Meter::new();
        pieces.for_each(|piece| meter.read(piece));
        assert_eq!(meter, whole);
    });
    let (control, resets) = count(bytes.get(24..).unwrap_or_default());
    let excess =
        |h2_control_frames_max, h2_resets_max| whole.excess(h2_control_frames_max, h2_resets_max);
    assert_eq!(excess(control, resets), None, "counts what is not there");
    if let Some(fewer) = control.checked_sub(1) {
        assert_eq!(excess(fewer, resets), Some(Excess::ControlFrames));
    }
    if let Some(fewer) = resets.checked_sub(1) {
        assert_eq!(excess(control, fewer), Some(Excess::Resets));
    }
}

/// Frames that are no requests, and resets among them (RFC 9113 §4.1 and §6).
fn count(mut bytes: &[u8]) -> (u32, u32) {
    let (mut control, mut resets) = (0, 0);
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let is_request = matches!(kind, 0 | 1 | 9);
        control += u32::from(!is_request);
        resets += u32::from(*kind == 3);
        bytes = rest.get(length..).unwrap_or_default();
    }
    (control, resets)
}
