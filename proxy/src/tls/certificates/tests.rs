use std::fs;
use std::path::Path;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa;
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use super::*;
use crate::tls::DevCa;
use crate::tls::dev_ca::params;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn write(folder: &Path, name: &str, (chain, key): &(String, String)) {
    fs::write(folder.join(format!("{name}.pem")), chain).unwrap();
    fs::write(folder.join(format!("{name}.key")), key).unwrap();
}

fn folder(ca: &DevCa, pairs: &[(&str, &[&str])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, names) in pairs {
        write(folder.path(), name, &ca.issue(names).unwrap());
    }
    folder
}

/// The leaf that would be served.
fn served(certificates: &Certificates, sni: &str) -> Option<Vec<u8>> {
    certificates.lookup(sni).map(|key| key.cert[0].to_vec())
}

fn der(pem: &str) -> Vec<u8> {
    use rustls_pki_types::pem::PemObject;
    rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

#[test]
fn an_exact_name_comes_before_a_wildcard_and_a_wildcard_is_one_label() {
    let ca = DevCa::new().unwrap();
    let exact = ca.issue(&["a.example.org"]).unwrap();
    let wildcard = ca.issue(&["*.example.org", "Other.Example.NET"]).unwrap();
    let folder = folder(&ca, &[]);
    write(folder.path(), "exact", &exact);
    write(folder.path(), "wildcard", &wildcard);
    let certificates = Certificates::open(folder.path()).unwrap();
    let (exact, wildcard) = (der(&exact.0), der(&wildcard.0));

    #[track_caller]
    fn check(certificates: &Certificates, sni: &str, expected: Option<&Vec<u8>>) {
        assert_eq!(served(certificates, sni).as_ref(), expected, "{sni}");
    }
    check(&certificates, "a.example.org", Some(&exact));
    check(&certificates, "b.example.org", Some(&wildcard));
    check(&certificates, "other.example.net", Some(&wildcard));
    check(&certificates, "b.a.example.org", None);
    check(&certificates, "example.org", None);
    check(&certificates, "b.other.example.net", None);
    check(&certificates, "", None);
    check(&certificates, ".", None);
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Certificates::open(folder.path().join("none")).is_err());
    assert!(Certificates::open(folder.path()).is_ok());
}

#[tokio::test]
async fn a_changed_file_is_served_without_a_restart() {
    let ca = DevCa::new().unwrap();
    let folder = folder(&ca, &[("a", &["a.example"])]);
    let certificates = Certificates::open(folder.path()).unwrap();
    let new = ca.issue(&["a.example"]).unwrap();
    let stop = CancellationToken::new();

    let change = async {
        let (_guard, poll) = (stop.clone().drop_guard(), Duration::from_millis(5));
        // Until the watch stands, so that it is the watch that sees the change.
        tokio::time::sleep(poll).await;
        write(folder.path(), "a", &new);
        write(folder.path(), "b", &ca.issue(&["b.example"]).unwrap());
        let seen = async {
            while served(&certificates, "a.example") != Some(der(&new.0))
                || certificates.lookup("b.example").is_none()
            {
                tokio::time::sleep(poll).await;
            }
        };
        tokio::time::timeout(RESCAN - Duration::from_secs(1), seen)
            .await
            .expect("seen by the watch");

        fs::remove_file(folder.path().join("b.pem")).unwrap();
        let seen = async {
            while certificates.lookup("b.example").is_some() {
                tokio::time::sleep(poll).await;
            }
        };
        tokio::time::timeout(RESCAN - Duration::from_secs(1), seen).await.expect("removed");
    };
    tokio::join!(certificates.clone().watch(stop.clone()), change);
}

#[tokio::test]
async fn reading_the_folder_does_not_wake_the_watch() {
    let ca = DevCa::new().unwrap();
    let folder = folder(&ca, &[("a", &["a.example"])]);
    let certificates = Certificates::open(folder.path()).unwrap();
    let changed = Arc::new(Notify::new());
    let _watcher = certificates.subscribe(changed.clone()).expect("inotify");
    let within = |time| tokio::time::timeout(time, changed.notified());

    certificates.scan().unwrap();
    assert!(within(Duration::from_millis(200)).await.is_err());
    write(folder.path(), "b", &ca.issue(&["b.example"]).unwrap());
    assert!(within(Duration::from_secs(5)).await.is_ok());
}

#[test]
fn a_broken_pair_keeps_the_last_good_version_and_says_why() {
    let ca = DevCa::new().unwrap();
    let folder = folder(&ca, &[("a", &["a.example"]), ("b", &["b.example"])]);
    let certificates = Certificates::open(folder.path()).unwrap();
    let good = served(&certificates, "a.example").unwrap();

    #[track_caller]
    fn check(certificates: &Certificates, good: &[u8], reason: &str) {
        certificates.scan().unwrap();
        assert_eq!(served(certificates, "a.example").as_deref(), Some(good), "{reason}");
        let listed = certificates.list();
        assert_eq!(listed[0].dns_names, ["a.example"]);
        let problem = listed[0].problem.as_deref().unwrap();
        assert!(problem.contains(reason), "{problem}");
        assert_eq!(listed[1].problem, None);
    }
    let file = |name: &str| folder.path().join(name);
    let (chain, key) = ca.issue(&["a.example"]).unwrap();

    fs::write(file("a.pem"), "-----BEGIN CERTIFICATE-----\nAAAA").unwrap();
    check(&certificates, &good, "not valid PEM");
    fs::write(file("a.pem"), "nothing").unwrap();
    check(&certificates, &good, "holds no certificate");
    fs::write(file("a.pem"), &chain).unwrap();
    check(&certificates, &good, "does not belong");
    fs::write(file("a.key"), "nothing").unwrap();
    check(&certificates, &good, "in the key file");
    fs::remove_file(file("a.key")).unwrap();
    check(&certificates, &good, "key file cannot be read");
    let (nameless, nameless_key) = ca.sign(params(DAY * 30)).unwrap();
    write(folder.path(), "a", &(nameless, nameless_key));
    check(&certificates, &good, "no DNS name");

    write(folder.path(), "a", &(chain.clone(), key));
    certificates.scan().unwrap();
    assert_eq!(served(&certificates, "a.example"), Some(der(&chain)));
    assert_eq!(certificates.list()[0].problem, None);
}

#[test]
fn a_pair_that_was_never_good_is_listed_and_not_served() {
    let ca = DevCa::new().unwrap();
    let folder = folder(&ca, &[("good", &["good.example"])]);
    fs::write(folder.path().join("bad.pem"), "nothing").unwrap();
    let certificates = Certificates::open(folder.path()).unwrap();
    let [bad, good] = &certificates.list()[..] else { panic!("two pairs") };
    assert_eq!((bad.name.as_str(), bad.dns_names.len(), bad.not_after), ("bad", 0, None));
    assert!(bad.problem.is_some());
    assert_eq!((good.name.as_str(), good.problem.as_deref()), ("good", None));
    assert!(certificates.lookup("good.example").is_some());
}

#[test]
fn a_file_that_was_only_touched_is_no_news() {
    let ca = DevCa::new().unwrap();
    let folder = folder(&ca, &[("a", &["a.example"])]);
    let certificates = Certificates::open(folder.path()).unwrap();
    let before = certificates.lookup("a.example").unwrap();
    let chain = fs::read(folder.path().join("a.pem")).unwrap();
    fs::write(folder.path().join("a.pem"), chain).unwrap();
    let later = SystemTime::now() + DAY; // the metadata is trusted by then
    assert!(!certificates.folder.lock().scan(folder.path(), later).unwrap());
    assert!(!certificates.folder.lock().scan(folder.path(), later).unwrap());
    assert!(Arc::ptr_eq(&before, &certificates.lookup("a.example").unwrap()));
    // Control: metadata that is trusted shows a change.
    write(folder.path(), "a", &ca.issue(&["a.example"]).unwrap());
    assert!(certificates.folder.lock().scan(folder.path(), later).unwrap());
}

#[test]
fn of_two_certificates_for_one_name_the_longer_lasting_is_served() {
    let ca = DevCa::new().unwrap();
    let of_days = |days: u32| {
        let mut params = params(DAY * days);
        params.subject_alt_names =
            CertificateParams::new(["a.example".to_owned()]).unwrap().subject_alt_names;
        ca.sign(params).unwrap()
    };
    let (short, long) = (of_days(10), of_days(60));
    for (first, second) in [(&short, &long), (&long, &short)] {
        let folder = folder(&ca, &[]);
        write(folder.path(), "1", first);
        write(folder.path(), "2", second);
        let certificates = Certificates::open(folder.path()).unwrap();
        assert_eq!(served(&certificates, "a.example"), Some(der(&long.0)));
    }
}

#[test]
fn keys_may_be_pkcs8_sec1_or_pkcs1() {
    fn pem(label: &str, der: &[u8]) -> String {
        use std::fmt::Write as _;
        let base64 = base64(der);
        let mut text = format!("-----BEGIN {label}-----\n");
        for line in base64.as_bytes().chunks(64) {
            writeln!(text, "{}", str::from_utf8(line).unwrap()).unwrap();
        }
        text + &format!("-----END {label}-----\n")
    }
    // What PKCS#8 wraps in its last octet string: the same key in its older form.
    fn inner(pkcs8: &[u8], header: usize) -> &[u8] {
        assert_eq!(pkcs8[header], 0x30, "a SEQUENCE");
        &pkcs8[header..]
    }
    let ec = KeyPair::generate().unwrap();
    let rsa = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
    let rsa_pkcs8 = rsa.as_der().unwrap();
    let rsa = KeyPair::try_from(rsa_pkcs8.as_ref()).unwrap();
    let ec_der = ec.serialize_der();
    let forms = [
        (&ec, pem("PRIVATE KEY", &ec_der)),
        (&ec, pem("EC PRIVATE KEY", inner(&ec_der, 29))),
        (&rsa, pem("RSA PRIVATE KEY", inner(rsa_pkcs8.as_ref(), 26))),
    ];
    for (key, pem) in forms {
        let certificate =
            CertificateParams::new(["a.example".to_owned()]).unwrap().self_signed(key).unwrap();
        let pair = Pair::parse(certificate.pem().as_bytes(), pem.as_bytes());
        assert!(pair.is_ok(), "{}: {:?}", &pem[..30], pair.err());
        let other = KeyPair::generate().unwrap().serialize_pem();
        let pair = Pair::parse(certificate.pem().as_bytes(), other.as_bytes());
        assert!(matches!(pair, Err(crate::tls::PairError::Mismatch)));
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            (0..3).fold(0u32, |bits, at| bits << 8 | chunk.get(at).map_or(0, |b| u32::from(*b)));
        for at in 0..4 {
            let six = (bits >> (18 - 6 * at)) as usize & 63;
            text.push(if at <= chunk.len() { ALPHABET[six] as char } else { '=' });
        }
    }
    text
}

#[test]
fn less_than_fourteen_days_is_soon() {
    let ca = DevCa::new().unwrap();
    let leaf = Leaf::parse(&der(&ca.issue(&["a.example"]).unwrap().0)).unwrap();
    let before = |days: u32| leaf.not_after - DAY * days;
    assert_eq!(leaf.expiry(before(15)), Expiry::Far);
    assert_eq!(leaf.expiry(before(13)), Expiry::Soon);
    assert_eq!(leaf.expiry(leaf.not_after + DAY), Expiry::Over);
}
