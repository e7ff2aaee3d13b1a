//! What runs in an image of eight layers: a web server, a store and an interpreter, by either runtime.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
};

use cofferdam_client::{Network, Run, RunRequest};
use cofferdam_integration::{bounded, images, input};

use crate::support::world::{World, connect, directory};

async fn with_stack() -> (World, String) {
    let world = World::start().await;
    let name = world.import("stack", directory(&images().join("oci/stack"))).wait().await.unwrap().remove(0);
    (world, name)
}

/// A port of loopback that nobody has at the moment.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts one of the image's servers on the host's network.
async fn server(world: &World, image: &str, runtime: &str, args: &[&str]) -> Run {
    let mut request = RunRequest::new(world.daemon.namespace(), image);
    request.container.options.args = args.iter().map(|arg| (*arg).to_owned()).collect();
    request.container.options.network = Network::Host;
    request.container.runtime = runtime.into();
    request.container.remove_on_exit = true;
    request.log = true;
    let run = world.client.run(request).unwrap();
    run.started().await.unwrap();
    run
}

fn page(port: u16, path: &str) -> String {
    let mut stream = connect(port);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn nginx_serves_a_page_on_the_hosts_network() {
    bounded(async {
        let (world, image) = with_stack().await;
        let before = world.holdings().await;
        for runtime in ["native", "runc"] {
            let port = port();
            let run = server(&world, &image, runtime, &["serve", &port.to_string()]).await;
            let text = page(port, "/");
            assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
            assert!(text.ends_with("<h1>served from a container</h1>\n"), "{text}");
            assert!(page(port, "/nowhere").starts_with("HTTP/1.1 404 "));
            run.task().kill(libc::SIGTERM as u32, false).await.unwrap();
            assert_eq!(run.wait().await.unwrap().status, 0);
            world.settles(&before).await;
        }
    });
}

#[test]
fn redis_answers() {
    bounded(async {
        let (world, image) = with_stack().await;
        let before = world.holdings().await;
        for runtime in ["native", "runc"] {
            let port = port();
            let run = server(&world, &image, runtime, &["store", &port.to_string()]).await;
            let mut stream = BufReader::new(connect(port));
            let mut ask = |command: &str| {
                stream.get_mut().write_all(format!("{command}\r\n").as_bytes()).unwrap();
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                line
            };
            assert_eq!(ask("PING"), "+PONG\r\n");
            assert_eq!(ask("SET name value"), "+OK\r\n");
            assert_eq!(ask("INCR count"), ":1\r\n");
            assert_eq!(ask("SHUTDOWN NOSAVE"), "");
            assert_eq!(run.wait().await.unwrap().status, 0);
            world.settles(&before).await;
        }
    });
}

#[test]
fn python_runs_a_script_from_its_input() {
    bounded(async {
        let (world, image) = with_stack().await;
        let before = world.holdings().await;
        let script = "import os, sys, json, hashlib\n\
            print(hashlib.sha256(b'abc').hexdigest())\n\
            print(os.getpid(), os.getcwd(), sys.argv[1:])\n\
            print(open('/etc/motd/10-text').read(), end='')\n\
            sys.exit(7)\n";
        for runtime in ["native", "runc"] {
            let (stdin, mut file) = input();
            file.write_all(script.as_bytes()).unwrap();
            drop(file);
            let ended = world.run_with(&image, &["python3", "-", "one", "two words"], |run| {
                run.container.runtime = runtime.into();
                run.stdio.stdin = stdin;
            });
            let (status, text) = ended.await.unwrap();
            assert_eq!(
                (status, text.as_str()),
                (
                    7,
                    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n\
                     1 /srv/app ['one', 'two words']\nnow a directory\n"
                )
            );
            world.settles(&before).await;
        }
        // What the image itself says is to be run.
        let (status, text) = world.run(&image, &[]).await.unwrap();
        let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!((status, &said["cwd"], &said["uid"]), (0, &"/srv/app".into(), &0.into()));
        // A layer's deletions hold, and what came back is new.
        let kept = "test ! -e /usr/share/man && test -f /etc/skel && cat /usr/share/doc/*/README";
        assert_eq!(world.run(&image, &["sh", "-c", kept]).await.unwrap(), (0, "came back\n".into()));
        world.settles(&before).await;
    });
}
