//! Another program removes the packet filter's rules while containers run: supervisors restore them, without any command.

use crate::{HOST, Site, WWW, is_page, page};
use std::time::{Duration, Instant};

/// Waits until a line of shell on the host succeeds.
#[track_caller]
fn until(site: &Site, line: &str) {
    let start = Instant::now();
    while site.host.run(line).code != 0 {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "never: {line}: {}",
            site.host.run("nft list ruleset")
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The tables without counters; the order of elements is the kernel's.
fn tables(site: &Site) -> String {
    let line = "nft -s list table inet weft | tr -d ',' | tr -s ' \\t' '\\n\\n' | sort";
    site.host.run(line).ok().stdout
}

const REMOVALS: [&str; 3] = ["nft flush ruleset", "nft flush table inet weft", "nft delete table inet weft"];

#[test]
fn supervisors_restore_flushed_rules_at_once() {
    let site = Site::set_up();
    let weft = site.host.weft();
    weft.run("network create --driver bridge --subnet 192.168.11.1/24 other").ok();
    let www = site.www();
    let db = weft.container("db", &format!("--network other -p 8081:80 {WWW}"));
    db.until_listening(80);
    let before = tables(&site);
    for removal in REMOVALS {
        site.host.run(removal).ok();
        let compare = "nft list table inet weft | grep -q 'dport map @ports4' && nft list map inet weft ports4 | grep -q other/ && \
            nft list map inet weft ports4 | grep -q testbridge/";
        until(&site, compare);
        assert_eq!(tables(&site), before, "{removal}");
        is_page(site.outside(&page(&format!("{HOST}:8080"))));
        is_page(site.outside(&page(&format!("{HOST}:8081"))));
        // The networks are apart.
        assert_ne!(www.sh(&page(&format!("{}:80", db.address()))).code, 0, "{removal}");
    }
    // The supervisor that worked is gone: another one does.
    db.remove();
    site.host.run("nft flush ruleset").ok();
    until(&site, "nft list map inet weft ports4 | grep -q testbridge/");
    is_page(site.outside(&page(&format!("{HOST}:8080"))));
    www.remove();
    weft.run("network rm other").ok();
    site.finish();
}

/// As a firewall's restart does: its rules go, with those that Weft put among them, and its policy stays.
#[test]
fn supervisors_restore_rules_in_forward_chains_of_others() {
    let site = Site::set_up();
    let chain = "'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'";
    let count = "nft list chain ip filter FORWARD | grep -c 'weft: forward'";
    site.host.run(&format!("nft {chain}")).ok();
    let www = site.www();
    is_page(site.outside(&page(&format!("{HOST}:8080"))));
    let before = site.host.run(count).ok().stdout;
    for removal in [
        "nft flush chain ip filter FORWARD".to_owned(),
        format!("nft delete table ip filter; nft {chain}"),
        "nft flush chain ip filter FORWARD".to_owned(),
    ] {
        site.host.run(&removal).ok();
        until(&site, &format!("test \"$({count})\" = {}", before.trim()));
        is_page(site.outside(&page(&format!("{HOST}:8080"))));
    }
    www.remove();
    site.host.weft().run("network rm testbridge").ok();
    assert_eq!(site.host.run(count).text(), "0");
    site.host.run("nft delete table ip filter").ok();
    site.host.assert_as_before();
}

#[test]
fn next_command_restores_flushed_rules() {
    let site = Site::set_up();
    let www = site.www();
    let before = tables(&site);
    // Without its supervisor nothing but a command is left to do it.
    let parent = site.host.run(&format!("awk '/^PPid/ {{print $2}}' /proc/{}/status", www.pid())).ok();
    site.host.run(&format!("kill -STOP {}", parent.text())).ok();
    site.host.run("nft flush ruleset").ok();
    let warned = site.host.weft().run("network ls").ok();
    assert!(warned.stderr.contains("elements restored"), "{warned}");
    assert_eq!(tables(&site), before);
    is_page(site.outside(&page(&format!("{HOST}:8080"))));
    site.host.run(&format!("kill -CONT {}", parent.text())).ok();
    www.remove();
    site.finish();
}
