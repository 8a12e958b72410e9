//! An agent and an etcd that know each other by certificates, and one with users: what works, what is said when it does not,
//! and that no password is seen.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use std::time::{Duration, Instant};
use tests::{Agent, Host, Running};

const URL: &str = "https://127.0.0.1:2379";
const DIR: &str = "/run/pki";
const PATIENCE: Duration = Duration::from_secs(20);
const PASSWORD: &str = "b4ckw4rd-st4ple";

/// An authority, whose certificate is `NAME.pem` in [`DIR`].
struct Authority(Issuer<'static, KeyPair>);

fn key() -> KeyPair {
    KeyPair::generate().unwrap_or_else(|e| panic!("a key: {e}"))
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    CertificateParams::new(names).unwrap_or_else(|e| panic!("a certificate: {e}"))
}

impl Authority {
    fn new(host: &Host, name: &str) -> Authority {
        let (key, mut params) = (key(), params(&[]));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = params.self_signed(&key).unwrap_or_else(|e| panic!("{name}: {e}"));
        host.write(&format!("{DIR}/{name}.pem"), own.pem());
        Authority(Issuer::new(params, key))
    }

    /// A certificate `NAME.pem` for an address or name, and its key `NAME.key`.
    fn certificate(&self, host: &Host, name: &str, subject: &str) {
        let (key, mut params) = (key(), params(&[subject]));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(&key, &self.0).unwrap_or_else(|e| panic!("{name}: {e}"));
        host.write(&format!("{DIR}/{name}.pem"), signed.pem());
        host.write(&format!("{DIR}/{name}.key"), key.serialize_pem());
    }
}

/// A machine with an underlay, certificates, and an etcd that wants one of its clients.
struct Site {
    host: Host,
    _etcd: Running,
}

impl Site {
    /// Fails when something is left but the table that keeps containers from etcd, which goes on without an agent.
    #[track_caller]
    fn assert_as_before(&self) {
        self.host.run("nft delete table inet weft-overlay").ok();
        self.host.assert_as_before();
    }

    #[track_caller]
    fn set_up() -> Site {
        let host = Host::new();
        host.link_machine("outside");
        host.run(&format!("mkdir -p {DIR}")).ok();
        let (authority, stranger) = (Authority::new(&host, "ca"), Authority::new(&host, "stranger"));
        authority.certificate(&host, "etcd", "127.0.0.1");
        authority.certificate(&host, "agent", "agent.example.org");
        stranger.certificate(&host, "other", "agent.example.org");
        let peers = "http://127.0.0.1:2380";
        let line = format!(
            "exec etcd --name t --data-dir /run/etcd --logger zap --log-outputs stderr \
             --listen-client-urls {URL} --advertise-client-urls {URL} --listen-peer-urls {peers} \
             --initial-advertise-peer-urls {peers} --initial-cluster t={peers} \
             --cert-file {DIR}/etcd.pem --key-file {DIR}/etcd.key --client-cert-auth --trusted-ca-file {DIR}/ca.pem 2>/dev/null"
        );
        let etcd = host.spawn("/bin/sh", &["-c", &line]);
        let site = Site { host, _etcd: etcd };
        let began = Instant::now();
        while site.etcdctl("endpoint health").code != 0 {
            assert!(began.elapsed() < PATIENCE, "etcd does not start: {}", site.etcdctl("endpoint health"));
            std::thread::sleep(Duration::from_millis(50));
        }
        site.host.note_baseline();
        site
    }

    fn etcdctl(&self, line: &str) -> tests::Output {
        let tls = format!("--cacert {DIR}/ca.pem --cert {DIR}/agent.pem --key {DIR}/agent.key");
        self.host.run(&format!("ETCDCTL_API=3 etcdctl --endpoints {URL} {tls} {line}"))
    }

    fn flags(&self, certificate: Option<&str>, ca: &str) -> String {
        let own =
            certificate.map(|name| format!(" --etcd-cert {DIR}/{name}.pem --etcd-key {DIR}/{name}.key"));
        let own = own.unwrap_or_default();
        format!("--node-name host1 --interface uplink0 --etcd {URL} --etcd-ca {DIR}/{ca}.pem{own}")
    }

    /// What an agent with such flags answers to `network create`, and logs.
    #[track_caller]
    fn refused(&self, flags: &str, expected: &[&str]) {
        let agent = self.host.agent_unready(flags);
        let began = Instant::now();
        let said = loop {
            let said = self.host.weft().run("network create --driver overlay --subnet 10.42.0.0/16 ov");
            assert!(said.code != 0, "{flags}: {said}");
            if expected.iter().all(|part| said.stderr.contains(part)) {
                break said;
            }
            assert!(began.elapsed() < PATIENCE, "{flags}: {said}\nthe agent: {}", agent.said());
            std::thread::sleep(Duration::from_millis(50));
        };
        assert_eq!(said.stderr.lines().count(), 1, "{said}");
        // So does the log, in one line.
        let logged = |log: &str| log.lines().any(|line| expected.iter().all(|part| line.contains(part)));
        while !logged(&agent.said()) {
            assert!(began.elapsed() < PATIENCE, "{flags}: {}", agent.said());
            std::thread::sleep(Duration::from_millis(50));
        }
        end(agent, &self.host);
        let keys = self.etcdctl("get --prefix --keys-only /");
        assert_eq!(keys.text(), "", "{flags}");
    }

    /// A network can be made, a container attached, and both removed.
    #[track_caller]
    fn works(&self, flags: &str) -> String {
        let (agent, weft) = (self.host.agent(flags), self.host.weft());
        weft.run("network create --driver overlay --subnet 10.42.0.0/16 ov").ok();
        weft.run("run -d --name c1 --network ov sleep 1000").ok();
        let ip = "{{.NetworkSettings.Networks.ov.IPAddress}}";
        let ip = weft.run(&format!("inspect --format {ip} c1")).ok().text().to_owned();
        self.host.run(&format!("ping -c 1 -W 5 {ip}")).ok();
        let processes = self.host.run("cat /proc/[0-9]*/cmdline").stdout;
        assert!(processes.contains("ovl-agent") && !processes.contains(PASSWORD), "{processes}");
        weft.run("rm -f c1").ok();
        weft.run("network rm ov").ok();
        end(agent, &self.host)
    }
}

/// What it said until its end.
#[track_caller]
fn end(agent: Agent, host: &Host) -> String {
    let said = agent.stop(host);
    host.run("rm -rf /var/lib/weft/ovl-agent /run/weft /run/pki/password; rmdir /var/lib/weft; true");
    said
}

#[test]
fn a_client_certificate_is_needed_and_a_wrong_one_is_said_to_be() {
    let site = Site::set_up();
    let client = "it does not accept the client certificate";
    site.refused(&site.flags(Some("other"), "ca"), &[URL, client, "--etcd-cert"]);
    site.refused(&site.flags(None, "ca"), &[URL, client, "--etcd-cert"]);
    let server = "its certificate is not signed by the authority in --etcd-ca";
    site.refused(&site.flags(Some("agent"), "stranger"), &[URL, server]);
    site.works(&site.flags(Some("agent"), "ca"));
    site.assert_as_before();
}

#[test]
fn a_users_password_is_used_and_never_shown() {
    let site = Site::set_up();
    for line in
        ["user add root:r00t", "role add weft", "role grant-permission weft --prefix=true readwrite /weft/"]
    {
        site.etcdctl(line).ok();
    }
    site.etcdctl(&format!("user add agent:{PASSWORD}")).ok();
    for line in ["user grant-role root root", "user grant-role agent weft", "auth enable"] {
        site.etcdctl(line).ok();
    }
    site.host.write("/run/pki/password", format!("{PASSWORD}\n"));
    site.host.run("chmod 600 /run/pki/password").ok();
    let flags = format!("{} --etcd-user agent --log debug", site.flags(Some("agent"), "ca"));
    let log = site.works(&format!("{flags} --etcd-password-file /run/pki/password"));
    assert!(log.contains("network ov") && !log.contains(PASSWORD), "{log}");
    // A wrong one is not shown either.
    site.host.write("/run/pki/password", format!("{PASSWORD}x\n"));
    let agent = site.host.agent_unready(&format!("{flags} --etcd-password-file /run/pki/password"));
    let began = Instant::now();
    let said = loop {
        let said = site.host.weft().run("network create --driver overlay ov");
        if said.stderr.contains(URL) && said.stderr.contains("wrong user or password") {
            break said;
        }
        assert!(began.elapsed() < PATIENCE, "{said}\nthe agent: {}", agent.said());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(said.code != 0 && !said.to_string().contains(PASSWORD), "{said}");
    let log = end(agent, &site.host);
    assert!(!log.contains(PASSWORD), "{log}");
    site.assert_as_before();
}
