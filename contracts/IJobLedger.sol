// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {OrgId, ArtifactId, GrantId, JobId, Refusal, Level} from "./Ids.sol";

/// @title IJobLedger
/// @notice The whole life of a job: admission, claim, commitment, verification by commit and reveal, release.
/// @dev Posted -> Claimed -> Committed -> Revealing -> (Disputed) -> Verified -> Opened -> Released; ends also in Denied,
/// Refuted, Expired, Refused, StaleConsent. "Verified" states that the kernel was applied to the committed ciphertexts.
/// A deadline has passed from the second that it names. A job costs two slots: its state, and the head of its series. What was
/// asked is not stored: the job's id is its hash, so whoever takes a step that needs the request gives it back. Commitments
/// are not stored either: whoever reveals shows the events since the result, which end in the stored head.
interface IJobLedger {
    enum JobState {
        None,
        Posted,
        Denied,
        Claimed,
        Committed,
        Revealing,
        Disputed,
        Verified,
        Opened,
        Released,
        Refuted,
        Expired,
        Refused,
        StaleConsent
    }

    struct JobRequest {
        ArtifactId artifactId;
        GrantId grantId;
        bytes32 kernelId;
        /// sha2-256 digest of the block with the kernel's parameters.
        bytes32 parametersDigest;
        bytes32 purpose;
        uint64 consentEpoch;
        uint32 policyVersion;
        /// What the release will cost under zCDP, in millionths of rho; not zero.
        uint64 rhoMicro;
        /// Whether per-row results are asked for.
        bool rowLevel;
        /// Chosen by the requester; tells jobs apart that ask the same.
        uint64 nonce;
    }

    /// @notice Where a job stands; its events say the rest.
    struct Progress {
        JobState state;
        Refusal refusal;
        /// Verifiers that must agree.
        uint8 replicas;
        /// Verifiers asked, committed, agreeing and dissenting so far.
        uint8 asked;
        uint8 commits;
        uint8 agreeing;
        uint8 dissenting;
        /// How often the job was claimed.
        uint8 turns;
        /// Unix seconds by which the present state must be left; 0 in final states.
        uint64 deadline;
        /// Number of the block in which it was posted.
        uint64 postedIn;
    }

    /// @notice A verifier's word, given to whoever sends it: EIP-712 type `Verdict(bytes32 jobId,bytes32 commitment,uint64
    /// deadline)` under the domain `Usufruct`, version `1`, of this contract.
    struct SignedVerdict {
        /// `keccak256(abi.encode(chainid, this, jobId, verifier, resultDigest, possession, salt))`.
        bytes32 commitment;
        /// Unix seconds from which the signature is void.
        uint64 deadline;
        /// Signature of the verifier's node account in the compact form of ERC-2098.
        bytes32 r;
        bytes32 vs;
    }

    /// @notice The events of a job since `ResultCommitted`, as far as the ledger does not know them.
    struct Commitments {
        /// Head of the series before `ResultCommitted`.
        bytes32 head;
        OrgId executor;
        bytes32 resultDigest;
        /// Deadline that `ResultCommitted` named.
        uint64 deadline;
        /// Verifiers and what they committed to, in the order of `VerdictCommitted`.
        OrgId[] verifiers;
        bytes32[] commitments;
        /// keccak256 of the payload of each `VerdictRevealed` so far, as in `EventSeries`.
        bytes32[] revealed;
    }

    /// @notice What a verifier committed to.
    struct Opening {
        /// Index into `Commitments.verifiers`.
        uint8 position;
        bytes32 resultDigest;
        /// `sha256(verifier || bytes of all result blocks in manifest order)`; whoever holds the blocks can check it.
        bytes32 possession;
        bytes32 salt;
    }

    /// @notice Seconds that each state may last.
    struct Timings {
        uint32 claim;
        uint32 compute;
        uint32 commit;
        uint32 reveal;
        uint32 dispute;
        uint32 release;
    }

    /// @notice The job was admitted: one use is consumed, rho reserved; first event of its series.
    event JobPosted(
        JobId indexed jobId,
        OrgId indexed requester,
        ArtifactId indexed artifactId,
        JobRequest request,
        uint8 replicas,
        uint8 asked,
        uint64 deadline,
        uint64 sequence,
        bytes32 head
    );
    /// @notice Admission refused the job; only event of its series.
    event JobDenied(
        JobId indexed jobId,
        OrgId indexed requester,
        ArtifactId indexed artifactId,
        JobRequest request,
        Refusal reason,
        uint64 sequence,
        bytes32 head
    );
    /// @notice `executor` has until `deadline` to commit a result.
    event JobClaimed(JobId indexed jobId, OrgId indexed executor, uint64 deadline, uint64 sequence, bytes32 head);
    /// @notice `executor` committed; `asked` verifiers have until `deadline` to commit theirs.
    event ResultCommitted(
        JobId indexed jobId,
        OrgId indexed executor,
        bytes32 resultDigest,
        uint8 asked,
        uint64 deadline,
        uint64 sequence,
        bytes32 head
    );
    /// @notice `verifier` is bound to what it found, which nobody can read yet.
    event VerdictCommitted(
        JobId indexed jobId,
        OrgId indexed verifier,
        bytes32 commitment,
        uint64 sequence,
        bytes32 head
    );
    /// @notice The result may be published; `commits` verifiers have until `deadline` to reveal.
    event CommitsClosed(JobId indexed jobId, uint8 commits, uint64 deadline, uint64 sequence, bytes32 head);
    /// @notice `verifier` found `resultDigest`; `agrees` when that is the executor's.
    event VerdictRevealed(
        JobId indexed jobId,
        OrgId indexed verifier,
        bytes32 resultDigest,
        bytes32 possession,
        bool agrees,
        uint64 sequence,
        bytes32 head
    );
    /// @notice Verifiers contradict each other; the council has until `deadline` to settle it.
    event JobDisputed(JobId indexed jobId, uint64 deadline, uint64 sequence, bytes32 head);
    /// @notice The result stands; the custodian has until `deadline` to announce decryption.
    event JobVerified(
        JobId indexed jobId,
        Level level,
        uint8 agreeing,
        uint8 asked,
        uint64 deadline,
        uint64 sequence,
        bytes32 head
    );
    /// @notice `state` is one of Refuted, Expired, Refused, StaleConsent; `from` the state that was left.
    event JobEnded(
        JobId indexed jobId,
        JobState from,
        JobState state,
        Refusal reason,
        uint64 sequence,
        bytes32 head
    );
    /// @notice Decryption is announced; the reservation is spent from here on.
    event ReleaseOpened(JobId indexed jobId, OrgId indexed custodian, uint64 deadline, uint64 sequence, bytes32 head);
    /// @notice The release exists; `sigmaMicro` is the noise's standard deviation in millionths.
    event JobReleased(
        JobId indexed jobId,
        OrgId indexed custodian,
        bytes32 releaseDigest,
        uint64 sigmaMicro,
        uint64 sequence,
        bytes32 head
    );
    /// @notice States entered from here on last this long.
    event TimingsChanged(Timings timings);
    /// @notice Jobs admitted from here on need at least `replicas` agreeing verifiers.
    event QuorumChanged(uint8 replicas);

    /// @notice The requester posted this very request before.
    error JobLedgerDuplicate(JobId jobId);

    /// @notice Nobody ever posted this job.
    error JobLedgerUnknown(JobId jobId);

    /// @notice The job is in `state`, where this cannot be done.
    error JobLedgerWrongState(JobId jobId, JobState state);

    /// @notice Too late: `deadline` has passed.
    error JobLedgerDeadlinePassed(JobId jobId, uint64 deadline);

    /// @notice Too early: the state lasts until `deadline`.
    error JobLedgerDeadlineNotPassed(JobId jobId, uint64 deadline);

    /// @notice Another organisation claimed the job.
    error JobLedgerNotExecutor(JobId jobId, OrgId caller);

    /// @notice Another organisation keeps the secret key.
    error JobLedgerNotCustodian(JobId jobId, OrgId caller);

    /// @notice The requester's organisation can neither execute nor verify, the executor's cannot verify; an organisation
    /// whose verdict is needed cannot execute.
    error JobLedgerNotEligible(JobId jobId, OrgId organisation);

    /// @notice A verifier commits once, and in a batch its signature comes after those of lower accounts.
    error JobLedgerAlreadyCommitted(JobId jobId, OrgId verifier);

    /// @notice The commitment of `verifier` is not to what is now revealed.
    error JobLedgerCommitmentMismatch(JobId jobId, OrgId verifier);

    /// @notice More verdicts at once than verifiers were asked.
    error JobLedgerTooManyVerdicts(JobId jobId, uint256 verdicts);

    /// @notice The signature is void since `deadline`.
    error JobLedgerSignatureExpired(address signer, uint64 deadline);

    /// @notice What was given as the job's events does not end in the stored head.
    error JobLedgerHistoryMismatch(JobId jobId);

    /// @notice A verifier reveals once.
    error JobLedgerAlreadyRevealed(JobId jobId, OrgId verifier);

    /// @notice The parameters' digest or rho is zero.
    error JobLedgerInvalidRequest(bytes32 parametersDigest);

    /// @notice A timing, a quorum, a digest, a noise scale or a reason is zero.
    error JobLedgerInvalidParameters();

    /// @notice A partner (authority) posts a job. Never reverts because of policy: a refusal is stored and emitted as
    /// `JobDenied` with its reason. On admission one use is consumed and rho reserved. Checks, in this order: steward,
    /// artifact and key usable; policy version; grant (`evaluate`); consent epoch; cohort; compute nodes and verifiers;
    /// budget. All active verifiers but the requester's are asked, 32 at most.
    /// Reverts only for callers that are no active partner, for a repeated request, a zero digest or zero rho.
    /// @return jobId `jobIdOf(requester, request)`.
    function postJob(JobRequest calldata request) external returns (JobId jobId);

    /// @notice A compute node takes a posted job, or one that another claimed and let pass its deadline; first come, first
    /// served; not the requester's own organisation, nor the one whose claim just lapsed, nor a verifier without which too
    /// few would be left to agree. At most 3 claims a job.
    function claimJob(JobId jobId) external;

    /// @notice The executor commits to the digest of its result manifest; it must not publish the result yet. `verdicts` are
    /// those that verifiers already gave it, as for `commitVerdicts`. An executor that also verifies is not asked.
    function commitResult(JobId jobId, bytes32 resultDigest, SignedVerdict[] calldata verdicts) external;

    /// @notice Any active member brings verifiers' commitments, its own among them: nobody's word depends on another's
    /// good will. In a batch accounts ascend. Commits close when all asked have committed.
    function commitVerdicts(JobId jobId, SignedVerdict[] calldata verdicts) external;

    /// @notice Any active member closes commits after the deadline; fewer commits than replicas end the job as Expired.
    function closeCommits(OrgId requester, JobRequest calldata request) external;

    /// @notice Any active member brings openings of commitments, in any number of calls; each opening proves itself.
    /// Two calls in one block do not both fit the series: the later one is refused, and repeated with what came before.
    /// Once all that committed have revealed, or at `closeReveals`, the job becomes Verified (enough agree, none dissents),
    /// Refuted (too few agree, and at least `replicas` dissenters on one other digest), Disputed (any other dissent) or
    /// Expired (too few agree, none dissents).
    function revealVerdicts(
        OrgId requester,
        JobRequest calldata request,
        Commitments calldata committed,
        Opening[] calldata openings
    ) external;

    /// @notice Any active member closes reveals after the deadline.
    function closeReveals(OrgId requester, JobRequest calldata request) external;

    /// @notice The council settles a dispute. Upheld means that the dissent is dismissed: the job becomes Verified when enough
    /// verifiers agree and Expired when they do not. Otherwise it becomes Refuted, as
    /// `ResultInvalid`, which tells the council's word from its silence.
    function settleDispute(OrgId requester, JobRequest calldata request, bool upheld) external;

    /// @notice Any active member ends a job that stalled: Posted, Claimed, Verified or Opened past the deadline become Expired,
    /// Disputed becomes Refuted. A claim that may still be taken over lasts for the time of a claim longer. Reservation and
    /// use come back unless decryption was announced.
    function expireJob(OrgId requester, JobRequest calldata request) external;

    /// @notice The node of the bundle's steward, who keeps its key, announces decryption of a verified result. Everything that
    /// may have changed since admission is checked again (artifact, grant standing, policy version, consent epoch, cohort,
    /// members); when something has, the job ends as StaleConsent or Refused instead, with the reason. Settles the
    /// reservation.
    function openRelease(OrgId requester, JobRequest calldata request) external;

    /// @notice The custodian's node refuses a verified result for a reason that only it can see, not `None`; ends as Refused.
    function refuseRelease(OrgId requester, JobRequest calldata request, Refusal reason) external;

    /// @notice Who announced decryption logs the release, with a noise scale above zero; only now may it hand the release out.
    function recordRelease(JobId jobId, bytes32 releaseDigest, uint64 sigmaMicro) external;

    /// @notice Council only; every value at least 1 second.
    function setTimings(Timings calldata newTimings) external;

    /// @notice Council only; fewest agreeing verifiers for any job, at least 1.
    function setQuorum(uint8 replicas) external;

    /// @notice Where the job stands; all fields empty when nobody posted it.
    function progress(JobId jobId) external view returns (Progress memory);
    /// @notice Length of the job's series and head after its last event; both 0 while there is none. Whoever holds
    /// the events up to a block has all of them only if they end in what this says at that block.
    function seriesHead(JobId jobId) external view returns (uint64 length, bytes32 head);
    /// @notice The id of the job that asks this: `keccak256(abi.encode(chainid, this, requester, request))`.
    function jobIdOf(OrgId requester, JobRequest calldata request) external view returns (JobId);
    /// @notice Seconds that each state lasts when entered now.
    function timings() external view returns (Timings memory);
    /// @notice Fewest agreeing verifiers of a job admitted now.
    function quorum() external view returns (uint8);
}
