//! `nfs3_client`, whose XDR and RPC are other people's: what both sides of our own code could have wrong in the same way,
//! it has not.

mod support;

use nfs3_client::{
    Nfs3ConnectionBuilder,
    nfs3_types::{
        nfs3::{
            COMMIT3args, CREATE3args, FSINFO3args, GETATTR3args, LINK3args, LOOKUP3args,
            LOOKUP3res, Nfs3Option, PATHCONF3args, READ3args, READDIRPLUS3args, REMOVE3args,
            RENAME3args, WRITE3args, cookieverf3, createhow3, diropargs3, filename3, nfs_fh3,
            nfsstat3, sattr3, stable_how,
        },
        rpc::{auth_unix, opaque_auth},
        xdr_codec::Opaque,
    },
    tokio::TokioConnector,
};
use support::TestServer;

fn entry<'a>(dir: &nfs_fh3, name: &'a str) -> diropargs3<'a> {
    diropargs3 {
        dir: dir.clone(),
        name: filename3(Opaque::borrowed(name.as_bytes())),
    }
}

#[test]
fn another_implementation_of_the_protocol_agrees() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let server = TestServer::start(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(converse(server.address.port()));
    assert_eq!(
        std::fs::read(dir.path().join("b")).expect("there"),
        b"hello from elsewhere"
    );
}

async fn converse(port: u16) {
    let user = auth_unix {
        stamp: 1,
        machinename: Opaque::borrowed(b"other"),
        uid: 0,
        gid: 0,
        gids: vec![1, 2],
    };
    let mut connection = Nfs3ConnectionBuilder::new(TokioConnector, "127.0.0.1", "/export")
        .connect_from_privileged_port(false)
        .mount_port(port)
        .nfs3_port(port)
        .credential(opaque_auth::auth_unix(&user))
        .mount()
        .await
        .expect("mounted");
    let root = connection.root_nfs_fh3();
    connection.null().await.expect("a reply");
    let info = connection
        .fsinfo(&FSINFO3args {
            fsroot: root.clone(),
        })
        .await
        .expect("a reply")
        .unwrap();
    assert!(info.rtmax >= 1 << 20 && info.wtmax >= 1 << 20);
    let limits = connection
        .pathconf(&PATHCONF3args {
            object: root.clone(),
        })
        .await
        .expect("a reply")
        .unwrap();
    assert!(limits.name_max == 255 && limits.no_trunc && limits.case_preserving);

    let attributes = sattr3 {
        mode: Nfs3Option::Some(0o640),
        ..sattr3::default()
    };
    let args = CREATE3args {
        where_: entry(&root, "a"),
        how: createhow3::GUARDED(attributes),
    };
    let created = connection.create(&args).await.expect("a reply").unwrap();
    let file = created.obj.unwrap();
    let text = b"hello from elsewhere";
    let args = WRITE3args {
        file: file.clone(),
        offset: 0,
        count: text.len() as u32,
        stable: stable_how::UNSTABLE,
        data: Opaque::borrowed(text),
    };
    let written = connection.write(&args).await.expect("a reply").unwrap();
    assert_eq!(written.count, text.len() as u32);
    let args = COMMIT3args {
        file: file.clone(),
        offset: 0,
        count: 0,
    };
    let committed = connection.commit(&args).await.expect("a reply").unwrap();
    assert_eq!(committed.verf, written.verf);
    let args = READ3args {
        file: file.clone(),
        offset: 6,
        count: 100,
    };
    let read = connection.read(&args).await.expect("a reply").unwrap();
    assert!(read.eof && read.data.as_ref() == &text[6..]);
    let attributes = connection
        .getattr(&GETATTR3args {
            object: file.clone(),
        })
        .await
        .expect("a reply")
        .unwrap();
    let attributes = attributes.obj_attributes;
    assert_eq!(
        (attributes.mode, attributes.size, attributes.nlink),
        (0o640, text.len() as u64, 1)
    );

    connection
        .link(&LINK3args {
            file: file.clone(),
            link: entry(&root, "c"),
        })
        .await
        .expect("a reply")
        .unwrap();
    let args = RENAME3args {
        from: entry(&root, "a"),
        to: entry(&root, "b"),
    };
    connection.rename(&args).await.expect("a reply").unwrap();
    connection
        .remove(&REMOVE3args {
            object: entry(&root, "c"),
        })
        .await
        .expect("a reply")
        .unwrap();
    let args = READDIRPLUS3args {
        dir: root.clone(),
        cookie: 0,
        cookieverf: cookieverf3::default(),
        dircount: 8192,
        maxcount: 32768,
    };
    let listed = connection
        .readdirplus(&args)
        .await
        .expect("a reply")
        .unwrap();
    let names: Vec<Vec<u8>> = listed
        .reply
        .entries
        .0
        .iter()
        .map(|entry| entry.name.0.to_vec())
        .collect();
    assert!(
        listed.reply.eof && names.contains(&b"b".to_vec()) && !names.contains(&b"a".to_vec()),
        "{names:?}"
    );
    let gone = connection
        .lookup(&LOOKUP3args {
            what: entry(&root, "a"),
        })
        .await
        .expect("a reply");
    assert!(matches!(
        gone,
        LOOKUP3res::Err((nfsstat3::NFS3ERR_NOENT, _))
    ));
    connection.unmount().await.expect("a reply");
}
