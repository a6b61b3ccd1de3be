//! Real servers for the server side of the lab, each in the foreground with its files in the lab's directory.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::lab::{LAN4, LAN6, Lab, SERVICE4, SERVICE6};
use crate::netns::Ns;
use crate::process::Process;

/// Starts nginx: on `port` for HTTP with a PROXY header, on `plain_port` without. Both answer `/` with the client's address and port
/// as nginx knows them, and serve files from the lab's directory under `/files/`, slowly under `/slow/`. Each request stands in [`nginx_log`].
///
/// # Panics
/// When it does not serve within some seconds.
#[must_use]
pub fn nginx(lab: &Lab, port: u16, plain_port: u16) -> Process {
    let dir = lab.dir().display();
    let config = lab.write(
        "nginx.conf",
        &format!(
            "daemon off; master_process off; user root; pid {dir}/nginx.pid; error_log {dir}/nginx.err info;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n\
             log_format who '$request_uri $proxy_protocol_addr $proxy_protocol_port $remote_addr';\n\
             access_log {dir}/nginx.log who;\n\
             client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
             uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
             sendfile on; keepalive_timeout 60s;\n\
             server {{ listen {port} proxy_protocol; listen [::]:{port} proxy_protocol; {locations} }}\n\
             server {{ listen {plain_port}; listen [::]:{plain_port}; {plain_locations} }}\n\
             }}\n",
            locations = locations(lab, "$proxy_protocol_addr $proxy_protocol_port"),
            plain_locations = locations(lab, "$remote_addr $remote_port"),
        ),
    );
    let mut server = Process::start(&lab.server, "nginx", &["-c", &config, "-e", &lab.path("nginx.err")]);
    wait_for_listener(&lab.server, &mut server, plain_port);
    server
}

fn locations(lab: &Lab, who: &str) -> String {
    let dir = lab.dir().display();
    format!(
        "location / {{ default_type text/plain; return 200 '{who}\\n'; }}\n\
         location /files/ {{ alias {dir}/; }}\n\
         location /slow/ {{ alias {dir}/; limit_rate 256k; }}\n"
    )
}

/// nginx's access log: one line a request, `URI PROXY-address PROXY-port peer-address`.
#[must_use]
pub fn nginx_log(lab: &Lab) -> String {
    fs::read_to_string(lab.path("nginx.log")).unwrap_or_default()
}

/// Starts haproxy with `accept-proxy` on `port`; it answers with the client's address and port.
///
/// # Panics
/// When it does not serve within some seconds.
#[must_use]
pub fn haproxy(lab: &Lab, port: u16) -> Process {
    haproxy_with(lab, port, "%[src] %[src_port]")
}

/// The same with an answer of one's own, in haproxy's log format.
///
/// # Panics
/// As [`haproxy`].
#[must_use]
pub fn haproxy_with(lab: &Lab, port: u16, answer: &str) -> Process {
    let config = lab.write(
        "haproxy.cfg",
        &format!(
            "global\n  maxconn 1000\n  log stdout format raw local0\n\
             defaults\n  mode http\n  log global\n  timeout client 30s\n  timeout server 30s\n  timeout connect 5s\n\
             frontend f\n  bind :{port} accept-proxy\n  bind :::{port} accept-proxy v6only\n\
             \x20 log-format \"request from %ci %cp\"\n\
             \x20 http-request return status 200 content-type text/plain lf-string \"{answer}\\n\"\n",
        ),
    );
    let mut server = Process::start(&lab.server, "haproxy", &["-db", "-f", &config]);
    wait_for_listener(&lab.server, &mut server, port);
    server
}

/// What [`relay`] does for one port of the service's addresses.
#[derive(Clone, Copy, Debug)]
pub struct Relayed {
    /// That port.
    pub port: u16,
    /// Whereto.
    pub upstream: SocketAddr,
    /// With a PROXY header of version 2.
    pub header: bool,
}

/// Starts haproxy in the appliance's place: the kernel of the appliance's namespace gets the service's addresses, haproxy relays TCP.
///
/// # Panics
/// When it does not serve within some seconds, or for no port at all.
#[must_use]
pub fn relay(lab: &Lab, ports: &[Relayed]) -> Process {
    lab.appliance.sh(&format!(
        "sysctl -qw net.ipv6.conf.p0.disable_ipv6=0 net.ipv6.conf.p1.disable_ipv6=0\n\
         ip addr add {SERVICE4}/24 dev p0\nip -6 addr add {SERVICE6}/64 dev p0 nodad\n\
         ip addr add {LAN4}/24 dev p1\nip -6 addr add {LAN6}/64 dev p1 nodad\n"
    ));
    let mut text = "global\n  maxconn 8000\n  nbthread 1\n\
                    defaults\n  mode tcp\n  maxconn 8000\n\
                    \x20 timeout connect 30s\n  timeout client 300s\n  timeout server 300s\n"
        .to_owned();
    for Relayed { port, upstream, header } in ports {
        let header = if *header { " send-proxy-v2" } else { "" };
        let _ = writeln!(
            text,
            "listen s{port}\n  bind {SERVICE4}:{port}\n  bind [{SERVICE6}]:{port}\n  server s {upstream}{header}"
        );
    }
    let config = lab.write("relay.cfg", &text);
    let mut relay = Process::start(&lab.appliance, "haproxy", &["-db", "-f", &config]);
    for Relayed { port, .. } in ports {
        wait_for_listener(&lab.appliance, &mut relay, *port);
    }
    relay
}

/// Starts sshd on `port` for root with the key at the returned path.
///
/// # Panics
/// When it does not serve within some seconds.
#[must_use]
pub fn sshd(lab: &Lab, port: u16) -> (Process, String) {
    for name in ["host_key", "user_key"] {
        let path = lab.path(name);
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path]).status();
        assert!(made.is_ok_and(|status| status.success()), "ssh-keygen made {path}");
    }
    fs::create_dir_all("/run/sshd").expect("sshd's directory for privilege separation");
    let mut text = String::new();
    let _ = write!(
        text,
        "Port {port}\nListenAddress 0.0.0.0\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\nUsePAM yes\n\
         PasswordAuthentication no\nPermitRootLogin prohibit-password\nUseDNS no\nPrintMotd no\n",
        lab.path("host_key"),
        lab.path("user_key.pub"),
    );
    let config = lab.write("sshd_config", &text);
    let mut server = Process::start(&lab.server, "/usr/sbin/sshd", &["-D", "-e", "-f", &config]);
    wait_for_listener(&lab.server, &mut server, port);
    (server, lab.path("user_key"))
}

/// Runs a command over ssh as root, from the client, and returns what it printed.
///
/// # Panics
/// When ssh fails.
#[must_use]
pub fn ssh(lab: &Lab, key: &str, host: Ipv4Addr, port: u16, command: &str) -> Vec<u8> {
    let port = port.to_string();
    let target = format!("root@{host}");
    let arguments = [
        "-i",
        key,
        "-p",
        &port,
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
        "-o",
        "ConnectTimeout=10",
        "-o",
        "BatchMode=yes",
        &target,
        command,
    ];
    let output = lab.client.output("ssh", &arguments);
    assert!(output.status.success(), "ssh ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Starts an iperf3 server on `port`.
///
/// # Panics
/// When it does not serve within some seconds.
#[must_use]
pub fn iperf3(lab: &Lab, port: u16) -> Process {
    let mut server = Process::start(&lab.server, "iperf3", &["-s", "-p", &port.to_string(), "--forceflush"]);
    wait_for_listener(&lab.server, &mut server, port);
    server
}

/// Runs an iperf3 client for `seconds`; `reverse` = the server sends. Returns the received bits per second.
///
/// # Panics
/// When iperf3 reports an error.
#[must_use]
pub fn iperf3_run(lab: &Lab, port: u16, seconds: u32, reverse: bool) -> f64 {
    let (host, port, seconds) = (SERVICE4.to_string(), port.to_string(), seconds.to_string());
    let mut arguments = vec!["-c", &host, "-p", &port, "-t", &seconds, "-J", "--connect-timeout", "5000"];
    if reverse {
        arguments.push("-R");
    }
    let output = lab.client.output("iperf3", &arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "iperf3 failed: {text}");
    let report: serde_json::Value = serde_json::from_str(&text).expect("iperf3 reports JSON");
    assert!(report.get("error").is_none(), "iperf3: {}", report["error"]);
    report["end"]["sum_received"]["bits_per_second"].as_f64().expect("a rate in iperf3's report")
}

/// What curl got, and from where it asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// curl's exit code: 0 = complete, 18 = cut short, 56 = reset.
    pub exit: i32,
    /// The body.
    pub body: Vec<u8>,
    /// The client's own address and port.
    pub local: Option<SocketAddr>,
}

impl Fetched {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// curl from the client; `extra` are further arguments.
///
/// # Panics
/// When curl cannot be run.
#[must_use]
pub fn curl(lab: &Lab, url: &str, extra: &[&str]) -> Fetched {
    let mut arguments = vec!["-s", "-g", "--max-time", "60", "-w", "%{stderr}%{local_ip} %{local_port}\n"];
    arguments.extend(extra);
    arguments.push(url);
    let output = lab.client.output("curl", &arguments);
    let about = String::from_utf8_lossy(&output.stderr).into_owned();
    let local = about
        .lines()
        .next()
        .and_then(|line| line.split_once(' '))
        .and_then(|(ip, port)| Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?)));
    Fetched { exit: output.status.code().unwrap_or(-1), body: output.stdout, local }
}

/// `http://address:port` + path for a service address.
#[must_use]
pub fn url(v6: bool, port: u16, path: &str) -> String {
    if v6 { format!("http://[{SERVICE6}]:{port}{path}") } else { format!("http://{SERVICE4}:{port}{path}") }
}

/// Waits until somebody listens on `port` in `ns`, without connecting.
fn wait_for_listener(ns: &Ns, server: &mut Process, port: u16) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let listening = ns.sh(&format!("ss -Htln 'sport = :{port}'"));
        if !listening.trim().is_empty() {
            return;
        }
        assert!(
            server.ended().is_none() && Instant::now() < deadline,
            "no listener on port {port}:\n{}",
            server.text()
        );
        thread::sleep(Duration::from_millis(20));
    }
}
