//! What is no expression, and what is told about it.

use sluice_filters::Expression;
use sluice_filters::expression::{ExpressionError, MAX_TEXT};

fn refused(text: &str) -> ExpressionError {
    Expression::compile(text).map(|expression| panic!("{}", expression.text())).unwrap_err()
}

#[test]
fn an_empty_expression_is_a_slip() {
    for text in ["", " ", "\t\n  "] {
        assert_eq!(refused(text), ExpressionError::Empty);
    }
    assert!(refused("").to_string().contains("; "), "a remedy");
}

#[test]
fn texts_have_a_bound_and_no_zero_octet() {
    assert_eq!(refused(&"x".repeat(MAX_TEXT + 1)), ExpressionError::TooLong(MAX_TEXT + 1));
    assert_eq!(refused("tcp\0 or udp"), ExpressionError::Nul);
    let blanks = format!("tcp{}", " ".repeat(MAX_TEXT - 3));
    assert!(Expression::compile(&blanks).is_ok());
}

#[test]
fn words_have_a_bound() {
    let hosts = |count: usize| format!("tcp and src host ({})", vec!["192.0.2.1"; count].join(" or "));
    assert_eq!(refused(&hosts(510)), ExpressionError::TooManyWords(513));
    assert!(Expression::compile(&hosts(200)).is_ok());
}

#[test]
fn libpcap_says_what_is_wrong_and_we_what_to_do() {
    let remedy = "; write a filter as for tcpdump, see pcap-filter(7)";
    for (text, said) in [
        ("tcp dst port", "syntax error"),
        ("tcp and and udp", "syntax error"),
        ("(tcp", "syntax error"),
        ("192.0.2.1", "syntax error"),
        ("ip proto tcp", "syntax error"),
        ("port 65536", "illegal port number"),
        ("port nosuchservice", "unknown port 'nosuchservice'"),
        ("net 10.0.0.1/8", "non-network bits set"),
        ("tcp[0:3] = 1", "data size must be 1, 2, or 4"),
        ("wlan addr1 01:02:03:04:05:06", "802.11"),
        ("tcp and udp", "rejects all packets"),
        ("proto nosuchproto", "unknown"),
    ] {
        let error = refused(text).to_string();
        assert!(error.contains(said), "{text}: {error}");
        assert!(error.ends_with(remedy), "{text}: {error}");
    }
}

#[test]
fn no_name_server_is_asked() {
    for (text, name) in [
        ("host www.example.com", "www.example.com"),
        ("src localhost", "localhost"),
        ("net loopback", "loopback"),
        ("tcp http", "http"),
        ("gateway router", "router"),
        ("ether host router", "router"),
        ("dst host 192.0.2.1 or example.com", "example.com"),
        ("tcp port 80 and src example.com", "example.com"),
        ("(port http) or example.com", "example.com"),
        ("port http or host (192.0.2.1 or example.com)", "example.com"),
        ("host 1.2.3.4.5", "1.2.3.4.5"),
        ("host 12ab", "12ab"),
        ("host \\tcp", "tcp"),
        ("host abcd:efgh", "abcd:efgh"),
        ("host 2001:db8::1::2", "2001:db8::1::2"),
        ("HOST 192.0.2.1", "HOST"),
        ("host 1.2.3.4.", "1.2.3.4."),
        ("wlan type mgt", "mgt"),
        ("len-20 = 5", "len-20"),
    ] {
        assert_eq!(refused(text), ExpressionError::Name(name.to_owned()), "{text}");
    }
}

#[test]
fn names_of_ports_and_protocols_are_taken() {
    for text in [
        "port http",
        "tcp dst port (http or https)",
        "tcp src port http or https and not host 192.0.2.1",
        "portrange ftp-http",
        "portrange 6000-6008",
        "ip proto \\tcp",
        "ip proto \\tcp or \\udp",
        "ip6 proto 6",
        "ether proto \\ip",
        "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn",
        "icmp[icmptype] = icmp-echo",
        "tcp[8:4] - 4 = 5 and len > 20",
        "net 10 or net 192.168 or net 172.16.0.0/12 or net 10.0.0.0 mask 255.0.0.0",
        "host 2001:db8::1 or net 2001:db8::/32 or host ::1",
        "ether host 02:00:00:00:00:01 or ether host 02-00-00-00-00-01 or ether host 0200.0000.0001",
        "tcp && !(port 22 || port 23)",
    ] {
        let expression = Expression::compile(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(expression.text(), text);
    }
}

#[test]
fn what_could_never_match_is_refused() {
    for text in ["vlan", "vlan 100 and tcp", "not vlan", "tcp and mpls 5", "pppoes and ip", "geneve 7"] {
        let ExpressionError::Envelope(word) = refused(text) else { panic!("{text}") };
        assert!(text.contains(&word));
        assert!(refused(text).to_string().contains("; leave it out"));
    }
    for text in ["inbound", "tcp and outbound", "ifindex 3", "on eth0", "action pass"] {
        assert!(matches!(refused(text), ExpressionError::Capture(_)), "{text}: {}", refused(text));
    }
}

#[test]
fn loops_and_overlong_programs_are_refused() {
    assert_eq!(refused("ip6 protochain 6"), ExpressionError::Loop);
    let nets: Vec<_> = (0..250u32).map(|i| format!("{}.{}.{}.0/24", 11 + i % 100, i / 100, i % 200)).collect();
    let text = format!("net ({})", nets.join(" or "));
    let ExpressionError::TooManyInstructions(count) = refused(&text) else { panic!("{}", refused(&text)) };
    assert!(count > 4096, "{count}");
    assert!(refused(&text).to_string().contains("put addresses into a set"));
}

#[test]
fn expressions_compile_on_several_threads() {
    let threads: Vec<_> = (1..5u16)
        .map(|port| {
            std::thread::spawn(move || {
                for _ in 0..50 {
                    assert!(Expression::compile(&format!("tcp dst port {port}")).is_ok());
                    assert!(Expression::compile("host 192.0.2.1 and tcp dst").is_err());
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}
