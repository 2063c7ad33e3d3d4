//! Storages of the existing deployment that are not here: why not, and what to do instead.

/// The names in `config.yml`, each with a sentence for whoever has it there.
pub const NOT_BUILT_IN: &[(&str, &str)] = &[
    (
        "storage.mongo",
        "the client library of MongoDB works only inside an asynchronous runtime, which this daemon \
         does without; use `storage.postgres`, whose column `vcon_json` can be queried and indexed",
    ),
    (
        "storage.sftp",
        "the SSH libraries either work only inside an asynchronous runtime, which this daemon does \
         without, or need OpenSSL and an unreleased version of libssh2; use `storage.file` with a \
         `path` on a file system mounted with sshfs",
    ),
    (
        "storage.vcon_mcp",
        "its service takes vCons as JSON; use `storage.webhook` with `<base_url>/vcons` among the \
         `webhook-urls`, and `Authorization: Bearer <api_key>` among the `headers`",
    ),
    (
        "storage.supabase_direct",
        "it fills tables of its own; use `storage.postgres`, which keeps whole vCons in one table of \
         the same database",
    ),
    (
        "storage.milvus",
        "it has OpenAI compute embeddings of each vCon; let a program of your own do that with the \
         vCons of an egress list",
    ),
    (
        "storage.chatgpt_files",
        "it uploads each vCon to OpenAI; let a program of your own do that with the vCons of an \
         egress list",
    ),
    (
        "storage.dataverse",
        "it needs tokens of Microsoft's login service; use `storage.webhook` with a service that \
         writes to Dataverse",
    ),
    (
        "storage.spaceandtime",
        "it needs the client library of Space and Time; use `storage.webhook` with a service that \
         writes there",
    ),
    (
        "storage.scitt",
        "it signs and registers statements about a vCon, and keeps none; let a program of your own do \
         that with the vCons of an egress list",
    ),
];
