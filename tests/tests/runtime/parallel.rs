//! Many at once.

use crate::Site;
use std::collections::BTreeSet;

const MANY: usize = 30;

#[test]
fn thirty_runs_at_once_get_addresses_of_their_own() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let names: Vec<String> = (0..MANY).map(|n| format!("c{n}")).collect();
    let addresses: BTreeSet<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(n, name)| {
                scope.spawn(move || {
                    let options = format!("--network testbridge -p {}:80 sleep 1000", 9000 + n);
                    weft.container(name, &options).address()
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(addresses.len(), MANY, "{addresses:?}");
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(move || weft.run(&format!("rm -f {name}")).ok());
        }
    });
    let leases = weft.run("ipam ls").ok();
    assert!(!leases.stdout.contains("192.168.10."), "{leases}");
    site.finish();
}

#[test]
fn of_ten_runs_on_one_port_one_wins() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let codes: Vec<i32> = std::thread::scope(|scope| {
        let run = |n| {
            scope.spawn(move || {
                weft.run(&format!("run -d --name c{n} --network testbridge -p 8080:80 sleep 1000"))
            })
        };
        let runs: Vec<_> = (0..10).map(run).collect();
        runs.into_iter().map(|run| run.join().unwrap().code).collect()
    });
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert!(codes.iter().all(|code| [0, 125].contains(code)), "{codes:?}");
    let all = weft.run("ps -a -q").ok();
    assert_eq!(all.text().lines().count(), 1, "{all}");
    weft.run(&format!("rm -f {}", all.text())).ok();
    site.finish();
}
