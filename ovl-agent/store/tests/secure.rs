//! TLS, users and passwords: what works, and which error says what is wrong. No message has a password.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap here is the failure report")]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use etcd_client::{Permission, PermissionType};
use ovl_store::target::{EtcdConf, Target};
use ovl_store::{Error, Kv, Result, range_end};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// An authority that makes certificates, and its directory.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), own.pem()).unwrap();
        Authority { dir, issuer: Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A certificate for this host name or address, and its key.
    fn certificate(&self, host: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        let paths = (self.path(&format!("{host}.pem")), self.path(&format!("{host}.key")));
        std::fs::write(&paths.0, pem).unwrap();
        std::fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }

    fn server(&self, host: &str, client_ca: Option<PathBuf>) -> Server {
        let (cert, key) = self.certificate(host);
        Server::start_with(Some(ServerTls { cert, key, client_ca }))
    }
}

async fn try_open(conf: EtcdConf) -> Result<Kv> {
    Kv::open(&Target::Etcd(conf)).await
}

/// What a commit, a snapshot and a watch say: the same kind of error.
async fn refused(conf: EtcdConf) -> Error {
    let kv = open(conf).await;
    let error = kv.commit(then([put("c/a", "")])).await.unwrap_err();
    let kind = std::mem::discriminant(&error);
    for other in [kv.snapshot("").await.map(drop).unwrap_err(), kv.watch("", 0).await.map(drop).unwrap_err()]
    {
        assert_eq!(std::mem::discriminant(&other), kind, "{error} and {other}");
    }
    error
}

/// As [`refused`], until the error has the hint: a server that closes a connection on which it has not read all resets it, and
/// its answer, by which it is recognised, may be lost with that.
async fn hinted(conf: &EtcdConf, hint: &str) -> Error {
    for _ in 0..50 {
        let error = refused(conf.clone()).await;
        if error.to_string().contains(hint) {
            return error;
        }
        assert!(error.to_string().contains("reset"), "{error:?}");
    }
    panic!("never {hint}");
}

/// That it is an error of TLS that names the endpoint and says this.
fn tls(error: &Error, url: &str, what: &str) {
    let text = error.to_string();
    assert!(matches!(error, Error::Tls { .. }) && text.contains(url) && text.contains(what), "{error:?}");
}

async fn works(conf: EtcdConf) {
    let kv = open(conf).await;
    let mut watch = kv.watch("c/", 0).await.unwrap();
    let at = set(&kv, "c/a", "1").await.revision;
    assert_eq!(changes(&mut watch).await[0].2, at);
    assert_eq!(kv.snapshot("c/").await.unwrap().revision, at);
}

#[tokio::test]
async fn the_servers_certificate_is_checked() {
    if !installed() {
        return;
    }
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = authority.server("127.0.0.1", None);
    let conf = |ca: &Path| EtcdConf { ca: Some(ca.to_owned()), ..server.conf() };
    works(conf(&authority.ca())).await;
    tls(&refused(conf(&stranger.ca())).await, &server.url(), "--etcd-ca");
    let elsewhere = EtcdConf { server_name: Some("etcd.example.org".into()), ..conf(&authority.ca()) };
    tls(&refused(elsewhere).await, &server.url(), "--etcd-server-name");
}

#[tokio::test]
async fn a_certificate_for_another_name_needs_the_name() {
    if !installed() {
        return;
    }
    let authority = Authority::new();
    let server = authority.server("etcd.example.org", None);
    let conf = EtcdConf { ca: Some(authority.ca()), ..server.conf() };
    tls(&refused(conf.clone()).await, &server.url(), "--etcd-server-name");
    works(EtcdConf { server_name: Some("etcd.example.org".into()), ..conf }).await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_when_it_is_asked_for() {
    if !installed() {
        return;
    }
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = authority.server("127.0.0.1", Some(authority.ca()));
    let conf = EtcdConf { ca: Some(authority.ca()), ..server.conf() };
    // More than once: the server's word can be overtaken by the end of the connection.
    for _ in 0..5 {
        tls(&refused(conf.clone()).await, &server.url(), "--etcd-cert");
    }
    let with =
        |(cert, key): (PathBuf, PathBuf)| EtcdConf { cert: Some(cert), key: Some(key), ..conf.clone() };
    works(with(authority.certificate("client"))).await;
    for _ in 0..5 {
        tls(&refused(with(stranger.certificate("client"))).await, &server.url(), "--etcd-cert");
    }
}

#[tokio::test]
async fn http_and_https_mixed_up_is_said() {
    if !installed() {
        return;
    }
    let authority = Authority::new();
    let (plain, secure) = (Server::start(), authority.server("127.0.0.1", None));
    let url = plain.url().replace("http:", "https:");
    let conf = EtcdConf { ca: Some(authority.ca()), ..EtcdConf::new(&url).unwrap() };
    let error = hinted(&conf, "is it http?").await;
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    let url = secure.url().replace("https:", "http:");
    let error = hinted(&EtcdConf::new(&url).unwrap(), "speaks TLS, is it https?").await;
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn https_is_hinted_at_with_a_user_and_where_a_client_certificate_is_asked_for_and_not_for_what_is_down()
{
    if !installed() {
        return;
    }
    let authority = Authority::new();
    for client_ca in [None, Some(authority.ca())] {
        let server = authority.server("127.0.0.1", client_ca);
        let url = server.url().replace("https:", "http:");
        let conf = EtcdConf { user: Some(("weft".into(), PASSWORD.into())), ..EtcdConf::new(&url).unwrap() };
        let error = refused(conf).await.to_string();
        assert!(error.contains("speaks TLS, is it https?") && !error.contains(PASSWORD), "{error}");
    }
    let error = refused(EtcdConf::new("http://127.0.0.1:1").unwrap()).await.to_string();
    assert!(!error.contains("https"), "{error}");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_at_once() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (cert, key) = authority.certificate("client");
    let (_, wrong_key) = other.certificate("client");
    let (none, garbage, bad) = (authority.path("none"), authority.path("garbage"), authority.path("bad"));
    std::fs::write(&garbage, "hello").unwrap();
    std::fs::write(&bad, "-----BEGIN CERTIFICATE-----\n%%%%\n-----END CERTIFICATE-----\n").unwrap();
    let conf = EtcdConf { ca: Some(authority.ca()), ..EtcdConf::new("https://127.0.0.1:1").unwrap() };
    let with = |cert: &Path, key: &Path| EtcdConf {
        cert: Some(cert.to_owned()),
        key: Some(key.to_owned()),
        ..conf.clone()
    };
    let ca = |ca: &Path| EtcdConf { ca: Some(ca.to_owned()), ..conf.clone() };
    for (conf, flag, file) in [
        (ca(&none), "--etcd-ca", &none),
        (ca(&garbage), "--etcd-ca", &garbage),
        (ca(&bad), "--etcd-ca", &bad),
        (with(&none, &key), "--etcd-cert", &none),
        (with(&key, &key), "--etcd-cert", &key),
        (with(&bad, &key), "--etcd-cert", &bad),
        (with(&cert, &none), "--etcd-key", &none),
        (with(&cert, &cert), "--etcd-key", &cert),
        (with(&cert, &wrong_key), "--etcd-key", &wrong_key),
    ] {
        match try_open(conf).await {
            Err(Error::Setting { field, value, .. }) => {
                assert_eq!((field, value.as_str()), (flag, file.to_str().unwrap()));
            }
            other => panic!("{flag} {file:?}: {other:?}"),
        }
    }
    try_open(with(&cert, &key)).await.unwrap();
}

const PASSWORD: &str = "correct horse";

/// A server with users: root, and weft, who may do everything below `/weft/`.
async fn guarded() -> Server {
    let server = Server::start();
    let mut raw = server.raw().await;
    raw.role_add("root").await.unwrap();
    raw.user_add("root", "root", None).await.unwrap();
    raw.user_grant_role("root", "root").await.unwrap();
    raw.role_add("weft").await.unwrap();
    let permission = Permission::new(PermissionType::Readwrite, "/weft/").with_prefix();
    raw.role_grant_permission("weft", permission).await.unwrap();
    raw.user_add("weft", PASSWORD, None).await.unwrap();
    raw.user_grant_role("weft", "weft").await.unwrap();
    raw.auth_enable().await.unwrap();
    server
}

async fn as_root(server: &Server) -> etcd_client::Client {
    let options = etcd_client::ConnectOptions::new().with_user("root", "root");
    etcd_client::Client::connect([server.url()], Some(options)).await.unwrap()
}

fn user(server: &Server, name: &str, password: &str) -> EtcdConf {
    EtcdConf { user: Some((name.into(), password.into())), ..server.conf() }
}

/// That it is refused, names the endpoint, and shows no password.
fn denied(error: &Error, server: &Server, what: &str) {
    let text = format!("{error} {error:?}");
    assert!(matches!(error, Error::Denied { .. }) && !error.is_temporary(), "{error:?}");
    assert!(text.contains(&server.url()) && text.contains(what), "{text}");
    assert!(!text.contains(PASSWORD) && !text.contains("hunter"), "{text}");
}

#[tokio::test]
async fn users_are_known_by_their_password_and_may_do_what_they_may() {
    if !installed() {
        return;
    }
    let server = guarded().await;
    works(user(&server, "weft", PASSWORD)).await;
    let kv = open(user(&server, "weft", PASSWORD)).await;
    let lease = kv.grant(std::time::Duration::from_secs(60)).await.unwrap();
    assert!(kv.keep_alive(lease).await.unwrap());
    kv.commit(then([get("", &range_end("")), ovl_store::Op::Put("c/b".into(), vec![], Some(lease))]))
        .await
        .unwrap();
    kv.revoke(lease).await.unwrap();
    assert!(!format!("{kv:?}").contains(PASSWORD), "{kv:?}");

    denied(&refused(server.conf()).await, &server, "gives no user (--etcd-user)");
    denied(&refused(user(&server, "weft", "hunter2")).await, &server, "wrong user or password");
    denied(&refused(user(&server, "nobody", PASSWORD)).await, &server, "wrong user or password");
    let elsewhere = EtcdConf { prefix: "/other/".into(), ..user(&server, "weft", PASSWORD) };
    denied(&refused(elsewhere).await, &server, "user \"weft\": permission denied");
}

#[tokio::test]
async fn a_user_where_there_are_none_is_said() {
    if !installed() {
        return;
    }
    let server = Server::start();
    denied(&refused(user(&server, "weft", "hunter2")).await, &server, "leave --etcd-user away");
}

#[tokio::test]
async fn a_token_that_ended_is_renewed() {
    if !installed() {
        return;
    }
    let mut server = guarded().await;
    let kv = open(user(&server, "weft", PASSWORD)).await;
    let at = set(&kv, "c/a", "1").await.revision;
    // Setting a password ends the user's tokens; the connection stays.
    let mut root = as_root(&server).await;
    root.user_change_password("weft", PASSWORD).await.unwrap();
    set(&kv, "c/a", "2").await;
    root.user_change_password("weft", PASSWORD).await.unwrap();
    let mut watch = kv.watch("c/", at + 1).await.unwrap();
    assert_eq!(changes(&mut watch).await[0].2, at + 1);
    root.user_change_password("weft", PASSWORD).await.unwrap();
    assert_eq!(kv.snapshot("").await.unwrap().entries.len(), 1);
    // A restart ends all tokens, and the connections.
    server.kill();
    server.restart();
    eventually(|| kv.commit(then([put("c/a", "3")]))).await;
    as_root(&server).await.user_change_password("weft", "another").await.unwrap();
    denied(&kv.commit(then([put("c/a", "4")])).await.unwrap_err(), &server, "wrong user or password");
    denied(&kv.watch("c/", 0).await.map(drop).unwrap_err(), &server, "wrong user or password");
}

#[tokio::test]
async fn users_and_tls_together() {
    if !installed() {
        return;
    }
    let authority = Authority::new();
    let server = authority.server("127.0.0.1", None);
    let error = refused(EtcdConf { ca: Some(authority.ca()), ..user(&server, "weft", "hunter2") }).await;
    denied(&error, &server, "leave --etcd-user away");
    let stranger = Authority::new();
    let error = refused(EtcdConf { ca: Some(stranger.ca()), ..user(&server, "weft", "hunter2") }).await;
    tls(&error, &server.url(), "--etcd-ca");
}
