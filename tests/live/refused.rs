//! Commands that the operator refuses, and refused ones that the operator allows.

use crate::common::{Settings, Stores, eventually};
use crate::protocol::Raw;

fn with_commands(lines: &str) -> Settings {
    let phases = ["standalone", "dual-standalone", "dual-cluster", "cluster"];
    let settings = Settings { routing: format!("[commands]\n{lines}"), ..Settings::of(Stores::shared()) };
    (230..).zip(phases).fold(settings, |settings, (id, phase)| settings.phase(&id.to_string(), phase))
}

fn refusal(command: &str, reason: &str) -> Vec<u8> {
    format!("-ERR '{command}' is not available through cutover: {reason}\r\n").into_bytes()
}

#[test]
fn the_operator_s_list_holds_in_every_phase_and_in_transactions_and_changes_while_clients_stay() {
    let lines = "refuse = [\"INCR\", \"CONFIG\", \"client kill\", \"EVAL\"]\nallow = [\"CONFIG GET\", \"acl whoami\"]";
    let mut proxy = with_commands(lines).start().ready();
    let by_operator = |command| refusal(command, "its operator has refused it");
    let mut client = Raw::to(proxy.port);
    for id in 230..234 {
        client.send(format!("DEL provider:{id}:n\r\nINCR provider:{id}:n\r\n").as_bytes());
        client.expect(&[b":0\r\n", &*by_operator("incr")].concat());
        client.send(format!("MULTI\r\nSET provider:{id}:n 1\r\nincr provider:{id}:n\r\nEXEC\r\n").as_bytes());
        client.expect(b"+OK\r\n+QUEUED\r\n");
        client.expect(&by_operator("incr"));
        client.expect(b"-EXECABORT Transaction discarded because of previous errors.\r\n");
        client.send(format!("GET provider:{id}:n\r\nEVAL \"return 1\" 1 provider:{id}:n\r\n").as_bytes());
        client.expect(&[b"$-1\r\n", &*by_operator("eval")].concat());
    }
    client.send(b"CONFIG SET maxmemory 0\r\nCONFIG GET maxmemory\r\nCLIENT KILL ID 1\r\nCLIENT GETNAME\r\n");
    client.expect(&[&*by_operator("config"), b"*2\r\n$9\r\nmaxmemory\r\n$1\r\n0\r\n"].concat());
    client.expect(&[&*by_operator("client"), b"$-1\r\n"].concat());
    client.send(b"ACL WHOAMI\r\nMULTI\r\nACL WHOAMI\r\nEXEC\r\nACL USERS\r\nBGSAVE\r\n");
    client.expect(b"$7\r\ndefault\r\n+OK\r\n+QUEUED\r\n*1\r\n$7\r\ndefault\r\n");
    client.expect(
        &[refusal("acl", "users belong to the stores"), refusal("bgsave", "persistence belongs to the stores")]
            .concat(),
    );
    client.send(b"CLIENT LIST ID 1\r\nPSYNC ? -1\r\n");
    client.expect(b"$0\r\n\r\n");
    client.expect(&refusal("psync", "replication belongs to the stores"));

    // Nothing can allow this one: the file is refused, and the list before it stays.
    proxy.edit(|settings| Settings { routing: "[commands]\nallow = [\"PSYNC\"]".into(), ..settings });
    eventually("the file is refused", || proxy.http("/api/table").1.contains("can never be passed on"));
    client.send(b"INCR provider:230:n\r\n");
    client.expect(&by_operator("incr"));

    proxy.edit(|settings| Settings { routing: "[commands]\nrefuse = [\"SET\"]".into(), ..settings });
    eventually("the other list is taken", || {
        client.send(b"INCR provider:230:n\r\n");
        let mut first = [0];
        std::io::Read::read_exact(&mut client.0, &mut first).expect("an answer");
        match first[0] {
            b':' => true,
            _ => {
                client.expect(&by_operator("incr")[1..]);
                false
            }
        }
    });
    client.expect(b"1\r\n");
    client.send(b"SET provider:231:n 1\r\nACL WHOAMI\r\nCLIENT KILL ID 99999\r\nDEL provider:230:n\r\n");
    client.expect(&[&*by_operator("set"), &*refusal("acl", "users belong to the stores"), b":0\r\n:1\r\n"].concat());
}
