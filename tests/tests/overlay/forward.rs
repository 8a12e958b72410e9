//! Hosts whose forward path has the policy drop, as Docker, ufw and hardened images set it.

use crate::cluster::{Cluster, Member, answers};
use std::time::Duration;

/// So long may an answer take that has to come, and one that must not.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(400);

/// A way to drop what is forwarded.
struct Form {
    drop: &'static str,
    list: &'static str,
    /// A reload: rules that are not the program's own go.
    flush: &'static str,
}

const FORMS: [Form; 2] = [
    Form {
        drop: "iptables -w -P FORWARD DROP && ip6tables -w -P FORWARD DROP",
        list: "iptables -w -S FORWARD; ip6tables -w -S FORWARD",
        flush: "iptables -w -F FORWARD && ip6tables -w -F FORWARD",
    },
    Form {
        drop: "nft 'add table inet hard; add chain inet hard fw { type filter hook forward priority 0; policy drop; }'",
        list: "nft -s list table inet hard",
        flush: "nft flush chain inet hard fw",
    },
];

impl Form {
    fn list(&self, lab: &Cluster, host: &str) -> String {
        lab.sh(host, self.list).ok().stdout
    }

    fn accepts(&self, lab: &Cluster, host: &str, network: &str) -> bool {
        self.list(lab, host).contains(&format!("weft: forward overlay/{network} "))
    }
}

/// The forms that this machine has programs for.
fn forms() -> impl Iterator<Item = Form> {
    let has_iptables = std::process::Command::new("iptables").arg("--version").output().is_ok();
    FORMS.into_iter().filter(move |form| has_iptables || !form.drop.starts_with("iptables"))
}

/// The containers reach each other, and each host reaches them, with both families.
#[track_caller]
fn all_pass(lab: &Cluster, members: &[&Member], what: &str) {
    for to in members {
        for from in members.iter().filter(|from| from.name != to.name) {
            for ip in to.ips() {
                let said = answers(&lab.netns_of(from), ip, PATIENCE).unwrap_or_default();
                assert!(said.starts_with(&to.name), "{what}: {} to {ip} of {}: {said:?}", from.name, to.name);
            }
        }
        for host in ["host1", "host2"] {
            for ip in to.ips() {
                reached_from(lab, host, &ip.to_string(), what);
            }
        }
    }
}

#[track_caller]
fn reached_from(lab: &Cluster, host: &str, ping: &str, what: &str) {
    let out = lab.sh(host, &format!("ping -c 3 -i 0.2 -W 5 {ping}"));
    assert_eq!(out.code, 0, "{what}: {host} pings {ping}: {out}");
}

#[test]
fn overlay_passes_forward_policy_drop() {
    for form in forms() {
        let lab = Cluster::bare(2);
        lab.network("--subnet 10.42.0.0/16 --subnet fd42::/48 ov");
        lab.network("--subnet 10.43.0.0/16 --subnet fd43::/48 --opt encap=direct direct");
        // Before the agent has anything to do with it.
        lab.sh("host1", form.drop).ok();
        let before = form.list(&lab, "host1");
        let run = |network: &str, host: &str| {
            lab.server(host, &format!("{network}-{host}"), &format!("--network {network}"))
        };
        let [ov, direct] = ["ov", "direct"].map(|network| ["host1", "host2"].map(|host| run(network, host)));
        // When the networks are there already.
        lab.sh("host2", form.drop).ok();
        lab.soon("host2 accepts", || {
            form.accepts(&lab, "host2", "ov") && form.accepts(&lab, "host2", "direct")
        });
        let all = |what: &str| {
            all_pass(&lab, &[&ov[0], &ov[1]], what);
            all_pass(&lab, &[&direct[0], &direct[1]], what);
            // As kube-proxy masquerades there.
            reached_from(&lab, "host1", &format!("-I 10.99.0.11 {}", direct[1].v4), what);
            reached_from(&lab, "host2", &format!("-I 10.99.0.12 {}", direct[0].v4), what);
        };
        all(form.drop);
        // No other source is let in, and no network into another.
        lab.sh("underlay", "ip route add 10.42.0.0/16 via 10.99.0.11").ok();
        for (from, to) in [
            (lab.netns("underlay"), ov[0].v4),
            (lab.netns("underlay"), ov[1].v4),
            (lab.netns_of(&direct[0]), ov[0].v4),
            (lab.netns_of(&direct[1]), ov[0].v4),
        ] {
            assert_eq!(answers(&from, to, SILENCE), None, "{} to {to}", from.display());
        }
        lab.sh("underlay", "ip route del 10.42.0.0/16").ok();
        let rules = form.list(&lab, "host1");
        lab.sh("host1", form.flush).ok();
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        lab.soon("the rules are back", || sorted(&form.list(&lab, "host1")) == sorted(&rules));
        all("after a reload");

        lab.remove(&[&direct[0], &direct[1]]);
        lab.soon("one network's rules go", || !form.accepts(&lab, "host1", "direct"));
        assert!(form.accepts(&lab, "host1", "ov"), "{}", form.list(&lab, "host1"));
        lab.remove(&[&ov[0], &ov[1]]);
        lab.soon("all rules go", || form.list(&lab, "host1") == before);
        lab.down();
    }
}

#[test]
fn no_forward_accept_leaves_chain_alone() {
    for form in forms() {
        let lab = Cluster::up("hosts: [{name: host1, agent: --no-forward-accept}, host2]\n");
        lab.network("--subnet 10.42.0.0/16 ov");
        lab.sh("host1", form.drop).ok();
        let before = form.list(&lab, "host1");
        let [one, two] = ["host1", "host2"].map(|host| lab.server(host, host, "--network ov"));
        lab.exec("host1", "ovl-agent sync").ok();
        assert_eq!(answers(&lab.netns_of(&one), two.v4, SILENCE), None, "{}", form.drop);
        assert_eq!(answers(&lab.netns_of(&two), one.v4, SILENCE), None, "{}", form.drop);
        assert_eq!(form.list(&lab, "host1"), before);
        lab.remove(&[&one, &two]);
        lab.down();
    }
}
