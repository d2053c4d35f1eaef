use std::future::{pending, poll_fn, ready};
use std::pin::pin;
use std::task::Waker;

use super::*;
use crate::inventory::Inventory;
use crate::inventory::tests::{app, inventory, limited};

/// A thread that allocates and frees what it is told to.
#[derive(Default)]
struct Injected(Cell<i64>);

impl Balance for Rc<Injected> {
    fn now(&self) -> i64 {
        self.0.get()
    }
}

impl Injected {
    fn allocates(&self, bytes: i64) {
        self.0.set(self.0.get() + bytes);
    }
}

fn desk() -> (Rc<Injected>, Rc<Desk<Rc<Injected>>>) {
    let thread = Rc::<Injected>::default();
    (thread.clone(), Rc::new(Desk { balance: thread }))
}

fn poll(task: Pin<&mut impl Future>) -> bool {
    task.poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

fn tenants(names: [&str; 2]) -> (Arc<Inventory>, [Arc<AppLive>; 2]) {
    let inventory = inventory();
    let live = names.map(|name| {
        inventory.apply(control::snapshot::Change::Upsert(Arc::new(app(
            name,
            vec![limited(1, None)],
            Vec::new(),
        ))));
        inventory.by_name(name).unwrap().live.clone()
    });
    (inventory, live)
}

#[test]
fn a_task_holds_what_its_polls_allocate_and_do_not_free() {
    let (thread, desk) = desk();
    let holdings = Rc::<Holdings>::default();
    thread.allocates(1_000_000); // before: somebody else's
    let mut task = pin!(desk.book(
        holdings.clone(),
        poll_fn(|_| {
            thread.allocates(10_000);
            thread.allocates(-4_000);
            Poll::<()>::Pending
        })
    ));
    assert!(!poll(task.as_mut()));
    assert_eq!(holdings.bytes(), 6_000);
    thread.allocates(5_000); // between: somebody else's
    assert!(!poll(task.as_mut()));
    assert_eq!(holdings.bytes(), 12_000);
}

/// What a task frees by its end counts, whether it ends by itself or is aborted.
#[test]
fn the_end_of_a_task_is_booked() {
    struct Buffer(Rc<Injected>);
    impl Drop for Buffer {
        fn drop(&mut self) {
            self.0.allocates(-50_000);
        }
    }
    let (thread, desk) = desk();
    let holdings = Rc::<Holdings>::default();
    for ends in [true, false] {
        let mut buffer = None;
        let of = thread.clone();
        let mut task = Box::pin(desk.book(
            holdings.clone(),
            poll_fn(move |_| {
                let first = buffer.is_none();
                if first {
                    of.allocates(50_000);
                    buffer = Some(Buffer(of.clone()));
                }
                if first || !ends { Poll::Pending } else { Poll::Ready(()) }
            }),
        ));
        assert!(!poll(task.as_mut()));
        assert_eq!(holdings.bytes(), 50_000);
        assert_eq!(poll(task.as_mut()), ends);
        drop(task);
        assert_eq!(holdings.bytes(), 0, "ends by itself: {ends}");
    }
}

#[test]
fn what_a_task_frees_for_others_is_no_credit() {
    let (thread, desk) = desk();
    let holdings = Rc::<Holdings>::default();
    let mut task = pin!(desk.book(
        holdings.clone(),
        poll_fn(|_| {
            thread.allocates(-80_000);
            Poll::<()>::Pending
        })
    ));
    assert!(!poll(task.as_mut()));
    thread.allocates(0);
    holdings.take(30_000);
    assert_eq!(holdings.bytes(), 30_000);
}

/// However much goes through a connection: bytes that change hands leave no trace.
#[test]
fn a_body_that_passes_through_is_not_held() {
    let (thread, desk) = desk();
    let holdings = Rc::<Holdings>::default();
    let mut task = pin!(desk.book(
        holdings.clone(),
        poll_fn(|_| {
            current().take(8_192); // read by the connection upstream
            thread.allocates(-8_192); // written to the client
            thread.allocates(16_384); // read from the client
            current().give(16_384); // written by the connection upstream
            Poll::<()>::Pending
        })
    ));
    for _ in 0..10_000 {
        assert!(!poll(task.as_mut()));
    }
    assert_eq!(holdings.bytes(), 0);
}

#[test]
fn what_the_runtime_frees_is_not_charged() {
    let (thread, desk) = desk();
    let holdings = Rc::<Holdings>::default();
    let spawning = poll_fn(|_| {
        thread.allocates(100);
        desk.unbooked(|| thread.allocates(4_000));
        Poll::<()>::Pending
    });
    let mut task = pin!(desk.book(holdings.clone(), spawning));
    assert!(!poll(task.as_mut()));
    assert_eq!(holdings.bytes(), 100);
}

#[test]
fn a_task_finds_its_own_holdings_and_not_those_of_the_one_before() {
    let (_, desk) = desk();
    let [one, other] = [(); 2].map(|()| Rc::<Holdings>::default());
    let find = || poll_fn(|_| Poll::Ready(current()));
    for holdings in [&one, &other, &one] {
        let mut task = pin!(desk.book(holdings.clone(), find()));
        let Poll::Ready(found) = task.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            unreachable!("it is ready")
        };
        assert!(Rc::ptr_eq(&found, holdings));
    }
    assert!(!Rc::ptr_eq(&current(), &one) && !Rc::ptr_eq(&current(), &other));
    assert!(poll(pin!(desk.book(one, ready(())))));
}

#[test]
fn an_app_whose_connections_hold_most_may_not_have_more_until_they_let_go() {
    let (_inventory, [flood, quiet]) = tenants(["flood", "quiet"]);
    let (thread, desk) = desk();
    let holdings = Rc::<Holdings>::default();
    holdings.belong_to(&flood);
    let small = Rc::<Holdings>::default();
    small.belong_to(&quiet);
    small.take(40_000);
    let growing = async {
        thread.allocates(10 << 20);
        pending::<()>().await;
    };
    let mut task = Box::pin(desk.book(holdings.clone(), growing));
    assert!(flood.may_have_more() && quiet.may_have_more());
    assert!(!poll(task.as_mut()));
    assert!(!flood.may_have_more() && quiet.may_have_more());
    assert!(holdings.is_fair_game() && !small.is_fair_game());
    assert!(Holdings::default().is_fair_game(), "nobody's");
    drop(task);
    drop(holdings);
    assert!(flood.may_have_more() && quiet.may_have_more());
}
