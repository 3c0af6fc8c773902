CREATE TABLE IF NOT EXISTS cursor (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    block_number INTEGER NOT NULL,
    block_hash BLOB NOT NULL,
    block_time INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS event (
    block_number INTEGER NOT NULL,
    log_index INTEGER NOT NULL,
    block_hash BLOB NOT NULL,
    block_time INTEGER NOT NULL,
    transaction_hash BLOB NOT NULL,
    contract TEXT NOT NULL,
    name TEXT NOT NULL,
    series BLOB,
    words BLOB NOT NULL,
    PRIMARY KEY (block_number, log_index)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS event_series ON event (contract, series) WHERE series IS NOT NULL;
CREATE INDEX IF NOT EXISTS event_name ON event (name);
CREATE TABLE IF NOT EXISTS refusal (
    block_number INTEGER NOT NULL,
    log_index INTEGER NOT NULL,
    PRIMARY KEY (block_number, log_index)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS series (
    contract TEXT NOT NULL,
    series BLOB NOT NULL,
    length INTEGER NOT NULL,
    head BLOB NOT NULL,
    PRIMARY KEY (contract, series)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS participant (
    org_id BLOB PRIMARY KEY,
    account TEXT NOT NULL,
    node_account TEXT NOT NULL,
    roles INTEGER NOT NULL,
    status INTEGER NOT NULL,
    hpke_key BLOB NOT NULL,
    peer_id BLOB NOT NULL UNIQUE,
    endpoint TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS key_domain (
    key_id BLOB PRIMARY KEY,
    custodian BLOB NOT NULL,
    parameters_id BLOB NOT NULL,
    public_digest BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    registered_at INTEGER NOT NULL,
    status INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS early_freeze (
    artifact_id BLOB PRIMARY KEY,
    frozen INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS artifact (
    artifact_id BLOB PRIMARY KEY,
    kind INTEGER NOT NULL,
    steward BLOB NOT NULL,
    key_id BLOB NOT NULL,
    content_digest BLOB NOT NULL,
    policy_digest BLOB NOT NULL,
    policy_version INTEGER NOT NULL,
    consent_scope BLOB NOT NULL,
    retain_until INTEGER NOT NULL,
    registered_at INTEGER NOT NULL,
    frozen INTEGER NOT NULL,
    job_id BLOB
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS artifact_content ON artifact (content_digest);
CREATE INDEX IF NOT EXISTS artifact_job ON artifact (job_id) WHERE job_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS parent_of (
    child BLOB NOT NULL,
    parent BLOB NOT NULL,
    PRIMARY KEY (child, parent)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS child_of (
    parent BLOB NOT NULL,
    child BLOB NOT NULL,
    PRIMARY KEY (parent, child)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS policy (
    artifact_id BLOB NOT NULL,
    version INTEGER NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (artifact_id, version)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS consent_epoch (
    steward BLOB NOT NULL,
    scope BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    anchored_at INTEGER NOT NULL,
    cohort_floor INTEGER NOT NULL,
    consent_root BLOB NOT NULL,
    status_digest BLOB NOT NULL,
    PRIMARY KEY (steward, scope, epoch)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage_grant (
    grant_id BLOB PRIMARY KEY,
    artifact_id BLOB NOT NULL,
    grantee BLOB NOT NULL,
    purpose BLOB NOT NULL,
    status INTEGER NOT NULL,
    used INTEGER NOT NULL,
    asked TEXT NOT NULL,
    terms TEXT,
    requested_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS budget (
    artifact_id BLOB PRIMARY KEY,
    total INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    spent INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS job (
    job_id BLOB PRIMARY KEY,
    state INTEGER NOT NULL,
    requester BLOB NOT NULL,
    executor BLOB NOT NULL,
    key_id BLOB NOT NULL,
    deadline INTEGER NOT NULL,
    replicas INTEGER NOT NULL,
    asked INTEGER NOT NULL,
    commits INTEGER NOT NULL,
    agreeing INTEGER NOT NULL,
    dissenting INTEGER NOT NULL,
    refusal INTEGER NOT NULL,
    result_digest BLOB NOT NULL,
    release_digest BLOB NOT NULL,
    artifact_id BLOB NOT NULL,
    grant_id BLOB NOT NULL,
    kernel_id BLOB NOT NULL,
    parameters_digest BLOB NOT NULL,
    purpose BLOB NOT NULL,
    consent_epoch INTEGER NOT NULL,
    policy_version INTEGER NOT NULL,
    rho_micro INTEGER NOT NULL,
    row_level INTEGER NOT NULL,
    nonce INTEGER NOT NULL,
    sigma_micro INTEGER NOT NULL DEFAULT 0,
    posted_at INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    suspect INTEGER NOT NULL,
    turns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS job_suspect ON job (job_id) WHERE suspect = 1;
CREATE TABLE IF NOT EXISTS fault (
    org_id BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    job_id BLOB NOT NULL,
    fault INTEGER NOT NULL,
    points INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL,
    PRIMARY KEY (org_id, sequence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS doubtful (
    job_id BLOB PRIMARY KEY
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS standing (
    org_id BLOB PRIMARY KEY,
    points INTEGER NOT NULL,
    since INTEGER NOT NULL,
    faults INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reputation_rule (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    fade_seconds INTEGER NOT NULL,
    points_limit INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS job_state ON job (state);
CREATE INDEX IF NOT EXISTS job_artifact ON job (artifact_id);
CREATE INDEX IF NOT EXISTS job_parameters ON job (parameters_digest);
CREATE TABLE IF NOT EXISTS verdict (
    job_id BLOB NOT NULL,
    verifier BLOB NOT NULL,
    commitment BLOB NOT NULL,
    result_digest BLOB,
    possession BLOB,
    agrees INTEGER,
    PRIMARY KEY (job_id, verifier)
) WITHOUT ROWID;
