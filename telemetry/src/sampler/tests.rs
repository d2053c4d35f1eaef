use super::*;

#[test]
fn ticks_arrive_and_the_thread_ends_when_asked() {
    let sampler = Sampler::start(&Config::default(), None).unwrap();
    let readings = sampler.readings().clone();
    let first = readings.heartbeat();
    assert!(first > 0 && readings.resident() > 0 && readings.limit() > 0, "{readings:?}");
    while readings.heartbeat() == first {
        thread::yield_now();
    }
    drop(sampler);
    let last = readings.heartbeat();
    thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(readings.heartbeat(), last, "it has ended");
}
