use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::Duration;

use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    text: String,
    files: usize,
}

impl Message for Note {
    fn descriptors(&self) -> usize {
        self.files
    }
}

fn note(text: impl Into<String>, files: usize) -> Note {
    Note { text: text.into(), files }
}

fn channels() -> (Channel, Channel) {
    let (one, other) = pair().unwrap();
    (Channel::new(one).unwrap(), Channel::new(other).unwrap())
}

/// An end that says whatever it wants.
fn rogue() -> (OwnedFd, Channel) {
    let (one, other) = pair().unwrap();
    (one, Channel::new(other).unwrap())
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn messages_arrive_whole_and_in_order_with_what_is_beside_them() {
    let (one, other) = channels();
    let files: Vec<_> = (0..3).map(|_| File::open("/dev/null").unwrap()).collect();
    let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    one.send(&note("first", 0), &[]).await.unwrap();
    one.send(&note("second", 3), &files).await.unwrap();
    let (message, beside) = other.receive::<Note>().await.unwrap();
    assert_eq!((message, beside.len()), (note("first", 0), 0));
    let (message, beside) = other.receive::<Note>().await.unwrap();
    assert_eq!((message, beside.len()), (note("second", 3), 3));
    assert!(beside.iter().all(|file| {
        rustix::io::fcntl_getfd(file).unwrap().contains(rustix::io::FdFlags::CLOEXEC)
    }));
}

#[tokio::test]
async fn as_many_descriptors_as_allowed_arrive_and_one_more_is_not_sent() {
    let (one, other) = channels();
    let file = File::open("/dev/null").unwrap();
    let files = [file.as_fd(); DESCRIPTORS_MAX + 1];
    one.send(&note("", DESCRIPTORS_MAX), &files[1..]).await.unwrap();
    assert_eq!(other.receive::<Note>().await.unwrap().1.len(), DESCRIPTORS_MAX);
    let sent = one.send(&note("", DESCRIPTORS_MAX + 1), &files).await;
    assert!(matches!(sent, Err(ChannelError::DescriptorsLost)), "{sent:?}");
}

#[tokio::test]
async fn descriptors_that_do_not_fit_end_the_conversation_and_none_is_kept() {
    let (one, other) = rogue();
    let file = File::open("/dev/null").unwrap();
    let files = [file.as_fd(); DESCRIPTORS_MAX + 1];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX + 1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
    let bytes = serde_json::to_vec(&note("", DESCRIPTORS_MAX + 1)).unwrap();
    sendmsg(&one, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    let received = other.receive::<Note>().await;
    assert!(matches!(received, Err(ChannelError::DescriptorsLost)), "{received:?}");
}

#[tokio::test]
async fn a_message_with_other_descriptors_than_it_says_is_refused() {
    let (one, other) = rogue();
    let file = File::open("/dev/null").unwrap();
    for (says, has) in [(0, 1), (2, 1), (1, 0)] {
        let bytes = serde_json::to_vec(&note("", says)).unwrap();
        transmit(&one, &bytes, &vec![file.as_fd(); has]).unwrap();
        let received = other.receive::<Note>().await;
        assert!(
            matches!(received, Err(ChannelError::Descriptors { expected, found })
                if (expected, found) == (says, has)),
            "{received:?}"
        );
    }
}

#[tokio::test]
async fn what_was_refused_is_closed() {
    let (one, other) = rogue();
    let file = File::open("/dev/null").unwrap();
    // Other tests open files too, so it is enough that this does not add up.
    let before = open_files();
    for _ in 0..50 {
        transmit(&one, b"garbage", &[file.as_fd(); 100]).unwrap();
        assert!(matches!(other.receive::<Note>().await, Err(ChannelError::Garbage(_))));
    }
    assert!(open_files() < before + 1_000, "{before} files became {}", open_files());
}

#[tokio::test]
async fn garbage_is_said_to_be_garbage() {
    let (one, other) = rogue();
    for bytes in [&b"\0"[..], b"{", b"[]", b"{\"text\":1}", b"\xff\xfe"] {
        transmit(&one, bytes, &[]).unwrap();
        let received = other.receive::<Note>().await;
        assert!(matches!(received, Err(ChannelError::Garbage(_))), "{received:?}");
    }
}

#[tokio::test]
async fn a_message_that_is_too_long_is_neither_sent_nor_believed() {
    let (one, other) = rogue();
    transmit(&one, &vec![b' '; MESSAGE_BYTES_MAX + 1], &[]).unwrap();
    let received = other.receive::<Note>().await;
    assert!(matches!(received, Err(ChannelError::TooLong)), "{received:?}");
    let sent = other.send(&note("x".repeat(MESSAGE_BYTES_MAX), 0), &[]).await;
    assert!(matches!(sent, Err(ChannelError::TooLong)), "{sent:?}");
    let longest = MESSAGE_BYTES_MAX - serde_json::to_vec(&note("", 0)).unwrap().len();
    let (one, other) = channels();
    one.send(&note("x".repeat(longest), 0), &[]).await.unwrap();
    assert_eq!(other.receive::<Note>().await.unwrap().0.text.len(), longest);
}

#[tokio::test]
async fn the_end_of_the_other_side_is_an_end() {
    let (one, other) = channels();
    one.send(&note("last", 0), &[]).await.unwrap();
    drop(one);
    assert_eq!(other.receive::<Note>().await.unwrap().0, note("last", 0));
    assert!(other.receive::<Note>().await.unwrap_err().is_end());
    assert!(other.send(&note("", 0), &[]).await.unwrap_err().is_end());
}

#[tokio::test]
async fn who_says_nothing_is_waited_for_without_taking_anything() {
    let (one, other) = channels();
    let waited = tokio::time::timeout(Duration::from_millis(20), other.receive::<Note>()).await;
    assert!(waited.is_err());
    one.send(&note("late", 0), &[]).await.unwrap();
    assert_eq!(other.receive::<Note>().await.unwrap().0, note("late", 0));
}

#[tokio::test]
async fn who_reads_nothing_holds_up_the_sender_and_nothing_gets_lost() {
    let (one, other) = channels();
    let mut sent = 0;
    let text = "x".repeat(60_000);
    while tokio::time::timeout(Duration::from_millis(20), one.send(&note(&*text, 0), &[]))
        .await
        .is_ok_and(|sent| sent.is_ok())
    {
        sent += 1;
        assert!(sent < 1_000, "the kernel keeps a bounded number");
    }
    for _ in 0..sent {
        assert_eq!(other.receive::<Note>().await.unwrap().0.text.len(), text.len());
    }
}
