use super::*;
use proptest::prelude::*;

fn parsed(text: &str) -> DeviceUri {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_documented_forms_are_read() {
    let file = DeviceUri::Uring { path: "/a/b".to_owned(), size: Some(8 << 30) };
    assert_eq!(parsed("uring:/a/b?size=8G"), file);
    let odd = DeviceUri::Uring { path: "a?b&c: 100%".to_owned(), size: None };
    assert_eq!(parsed("uring:a%3fb%26c: 100%25"), odd);
    assert_eq!(parsed("mem:?size=64M"), DeviceUri::Mem { size: 64 << 20, block_size: 512 });
    let mem = DeviceUri::Mem { size: 64 << 20, block_size: 4096 };
    assert_eq!(parsed("mem:?block_size=4096&size=64MiB"), mem);
    let latency = Latency {
        read: Duration::from_millis(5),
        write: Duration::from_millis(8),
        flush: Duration::from_millis(8),
        jitter: 20,
        seed: 0,
    };
    let slow = DeviceUri::Slow { inner: Box::new(file), latency };
    assert_eq!(parsed("slow:uring:/a/b?size=8G&read_us=5000&write_us=8000&jitter=20%"), slow);
    let both = DeviceUri::Fault { inner: Box::new(slow) };
    let text = "fault:slow:uring:/a/b?read_us=5000&write_us=8000&jitter=20%&size=8G";
    assert_eq!(parsed(text), both);
    let DeviceUri::Slow { inner, latency } = parsed("slow:fault:mem:?size=1M&flush_us=3&seed=9")
    else {
        panic!("not slow outside")
    };
    assert!(matches!(*inner, DeviceUri::Fault { .. }));
    assert_eq!((latency.flush, latency.seed), (Duration::from_micros(3), 9));
    let DeviceUri::Slow { inner, .. } =
        parsed("slow:nvmf+tcp://h:1/nqn.a:b?nsid=2&read_us=5&hdgst=1")
    else {
        panic!("not slow")
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let options = vec![pair("nsid", "2"), pair("hdgst", "1")];
    assert_eq!(*inner, DeviceUri::NvmfTcp { address: "h:1/nqn.a:b".to_owned(), options });
}

#[test]
fn errors_name_the_part_and_what_is_accepted() {
    for (text, parts) in [
        ("", &["no scheme", "mem:?size=1G"][..]),
        ("/dev/sda", &["no scheme", "`uring:/dev/sda`"]),
        ("urng:/a", &["`urng:` is not a scheme", "did you mean `uring:`?"]),
        ("xyz:/a", &["`xyz:` is not a scheme;"]),
        ("uring:", &["path is missing"]),
        ("uring:/a?sze=1", &["`sze` is not an option", "did you mean `size`?"]),
        ("uring:/a?block_size=512", &["`block_size` is not an option here; accepted: `size`"]),
        ("uring:/a?size", &["has no value"]),
        ("uring:/a?size=1X", &["size: `1X` is not a size"]),
        ("uring:/a?size=0", &["not a size"]),
        ("uring:/a?size=99999999999T", &["not a size"]),
        ("uring:/a?size=9000000T", &["not a size"]),
        ("uring:/a?size=1&size=2", &["twice"]),
        ("uring:/a%4?size=1", &["`%25`"]),
        ("uring:/a%00b", &["zero byte"]),
        ("uring:/a%ff", &["UTF-8"]),
        ("mem:", &["size is missing"]),
        ("mem:x?size=1", &["follows `mem:`"]),
        ("mem:?size=1000", &["multiple of the block size 512"]),
        ("mem:?size=1M&block_size=1024", &["accepted are 512 and 4096"]),
        ("mem:?size=1M&read_us=1", &["`read_us` is not an option", "`size`, `block_size`"]),
        ("slow:mem:?size=1M", &["without a latency"]),
        ("slow:mem:?size=1M&read_us=1&jitter=x", &["jitter: jitter is 0% to 100%"]),
        ("slow:mem:?size=1M&read_us=1&jitter=101%", &["0% to 100%"]),
        ("slow:mem:?size=1M&read_us=-1", &["read_us: `-1` is not"]),
        ("slow:mem:?size=1M&read_us=60000001", &["a minute"]),
        ("slow:mem:?size=1M&read_us=1&seed=x", &["seed"]),
        ("nvmf+tcp:host/nqn", &["nvmf+tcp://host:4420/NQN"]),
        ("nvmf+tcp://host", &["NQN is missing"]),
        ("spdk:0000:5e:00.0", &["later version"]),
        ("fault:fault:mem:?size=1M", &["`fault:` is there twice"]),
        ("slow:", &["no scheme"]),
    ] {
        let error = text.parse::<DeviceUri>().unwrap_err();
        for part in parts {
            assert!(error.what.contains(part), "{text}: {part:?} is not in {error}");
        }
    }
    assert!("x".repeat(10_000).parse::<DeviceUri>().unwrap_err().to_string().len() < 300);
}

proptest! {
    #[test]
    fn malformed_texts_never_panic(
        text in "(uring|mem|slow|fault|nvmf\\+tcp)?:?(//)?[ -~é]{0,40}(\\?[ -~é]{0,40})?"
    ) {
        if let Err(error) = text.parse::<DeviceUri>() {
            prop_assert!(!error.what.is_empty());
        }
    }

    #[test]
    fn sizes_are_powers_of_1024(count in 1u64..1 << 20, unit in 0usize..5) {
        let suffix = ["", "K", "M", "GiB", "T"][unit];
        let size = Some(count << (10 * unit));
        let uri = DeviceUri::Uring { path: "f".to_owned(), size };
        prop_assert_eq!(parsed(&format!("uring:f?size={count}{suffix}")), uri);
    }
}
