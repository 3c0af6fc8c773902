import { expect } from "chai";
import {
  Freeze, KERNEL, Kind, Level, QUORUM, RESULT, Refusal, Role, SALT, State, Status, TIMINGS, ZERO, anchor,
  ask, atDeadline, claim, commitResult, commitVerdict, commitment, digest, encode, ethers, govern, grant, jobIn,
  judged, label, loadFixture, passDeadline, possession, post, ready,
  registerBundle, request, reveal, setStatus, stateOf, terms, time,
} from "./network.js";

const UNKNOWN = digest("no such job");
const OTHER = digest("another result");
const someHead = (head) => head !== ZERO;
const fails = (n, promise, error, ...args) =>
  expect(promise).to.be.revertedWithCustomError(n.jobs, error).withArgs(...args);
const accountOf = async (n) => [...(await n.budgets.account(n.bundle))].map(Number);
const usedOf = async (n) => Number((await n.rights.grant(n.grantId)).used);

// A job that ended before decryption gives its use and its rho back; after that, never.
async function expectGivenBack(n) {
  expect(await accountOf(n)).to.deep.equal([10_000, 0, 0]);
  expect(await n.budgets.committedUnder(n.grantId)).to.equal(0n);
  expect(await usedOf(n)).to.equal(0);
}

async function expectEnded(n, jobId, state, reason = Refusal.None) {
  const job = await n.jobs.job(jobId);
  expect([job.state, job.refusal, job.deadline]).to.deep.equal([state, reason, 0n]);
}

describe("JobLedger", () => {
  describe("postJob", () => {
    it("admits: one use consumed, rho reserved, everything fixed", async () => {
      const n = await loadFixture(ready);
      const given = request(n);
      const jobId = await n.jobs.jobIdOf(n.university.id, 1);
      const { chainId } = await ethers.provider.getNetwork();
      expect(jobId).to.equal(ethers.keccak256(
        encode(["uint256", "address", "bytes32", "uint64"], [chainId, n.jobs.target, n.university.id, 1]),
      ));
      const now = (await time.latest()) + 5;
      await time.setNextBlockTimestamp(now);
      await expect(n.jobs.connect(n.university.account).postJob(given))
        .to.emit(n.jobs, "JobPosted")
        .withArgs(
          jobId, n.university.id, n.bundle, (r) => r.kernelId === KERNEL, n.keyId, QUORUM, now + TIMINGS.claim, 1, someHead,
        );
      const job = await n.jobs.job(jobId);
      expect([job.state, job.requester, job.executor, job.keyId, job.deadline, job.replicas])
        .to.deep.equal([State.Posted, n.university.id, ZERO, n.keyId, BigInt(now + TIMINGS.claim), 2n]);
      expect(job.request).to.deep.equal(Object.values(given).map((v) => (typeof v === "number" ? BigInt(v) : v)));
      expect(await accountOf(n)).to.deep.equal([10_000, 1_000, 0]);
      expect(await usedOf(n)).to.equal(1);
    });

    it("asks for as many agreeing verifiers as the stricter of grant and network", async () => {
      const n = await loadFixture(ready);
      const strict = await grant(n, { replicas: 3 });
      const one = await grant(n, { replicas: 1 });
      expect((await n.jobs.job(await post(n, { grantId: strict }))).replicas).to.equal(3n);
      expect((await n.jobs.job(await post(n, { grantId: one, nonce: 2 }))).replicas).to.equal(2n);
    });

    it("reverts for a repeated nonce, also after a denial", async () => {
      const n = await loadFixture(ready);
      const jobs = n.jobs.connect(n.university.account);
      const first = await post(n);
      await fails(n, jobs.postJob(request(n)), "JobLedgerDuplicate", first);
      const denied = await post(n, { nonce: 2, policyVersion: 9 });
      expect(await stateOf(n, denied)).to.equal(State.Denied);
      await fails(n, jobs.postJob(request(n, { nonce: 2 })), "JobLedgerDuplicate", denied);
    });

    it("reverts for a zero parameters' digest or zero rho", async () => {
      const n = await loadFixture(ready);
      const jobs = n.jobs.connect(n.university.account);
      for (const overrides of [{ parametersDigest: ZERO }, { rhoMicro: 0 }]) {
        const given = request(n, overrides);
        await fails(n, jobs.postJob(given), "JobLedgerInvalidRequest", given.parametersDigest);
      }
    });

    const denials = {
      ArtifactMismatch: () => ({ artifactId: UNKNOWN }),
      ArtifactFrozen: async (n) => {
        await n.lineage.connect(n.north.account).setFrozen(n.bundle, true);
      },
      RetentionPassed: async (n) => {
        await time.increaseTo((await n.lineage.artifact(n.bundle)).retainUntil);
      },
      StewardNotActive: (n) => setStatus(n, n.north, Status.Suspended).then(() => undefined),
      KeyDomainNotActive: async (n) => {
        await n.keys.connect(n.north.account).retire(n.keyId);
      },
      PolicyVersionStale: async (n) => {
        await n.lineage.connect(n.north.account).setPolicy(n.bundle, digest("new policy"));
      },
      GrantUnknown: () => ({ grantId: UNKNOWN }),
      GrantNotOpen: async (n) => ({ grantId: await ask(n) }),
      GrantRevoked: async (n) => {
        await n.rights.connect(n.north.account).revokeArtifact(n.bundle);
      },
      GrantExpired: async (n) => {
        await time.increaseTo((await n.rights.grant(n.grantId)).terms.expiresAt);
      },
      UsesExhausted: async (n) => ({ grantId: await grant(n, { uses: 0 }) }),
      GranteeMismatch: async (n) => {
        await govern(n, n.participants, "setRoles", [n.auditor.id, Role.PARTNER | Role.VERIFIER]);
        return { as: n.auditor };
      },
      PurposeNotGranted: () => ({ purpose: label("marketing") }),
      KernelNotGranted: () => ({ kernelId: UNKNOWN }),
      RowLevelNotGranted: () => ({ rowLevel: true }),
      ConsentEpochStale: async (n) => {
        await anchor(n, 2, 50);
      },
      CohortTooSmall: async (n) => {
        await anchor(n, 2, 20);
        return { consentEpoch: 2 };
      },
      NotEnoughVerifiers: async (n) => {
        await setStatus(n, n.south, Status.Suspended);
        await setStatus(n, n.auditor, Status.Suspended);
      },
      BudgetExceeded: () => ({ rhoMicro: 5_001 }),
    };
    for (const [reason, prepare] of Object.entries(denials)) {
      it(`records a denial with ${reason}, and takes neither use nor rho`, async () => {
        const n = await loadFixture(ready);
        const { as = n.university, ...overrides } = (await prepare(n)) ?? {};
        const before = [await accountOf(n), await usedOf(n)];
        const given = request(n, overrides);
        const jobId = await n.jobs.jobIdOf(as.id, given.nonce);
        await expect(n.jobs.connect(as.account).postJob(given))
          .to.emit(n.jobs, "JobDenied")
          .withArgs(
            jobId, as.id, given.artifactId, (r) => r.grantId === given.grantId, Refusal[reason], 1, someHead,
          );
        await expectEnded(n, jobId, State.Denied, Refusal[reason]);
        expect([await accountOf(n), await usedOf(n)]).to.deep.equal(before);
        await fails(n, claim(n, jobId), "JobLedgerWrongState", jobId, State.Denied);
        await fails(n, n.jobs.connect(n.compute.node).expireJob(jobId), "JobLedgerWrongState", jobId, State.Denied);
      });
    }

    it("denies with ArtifactMismatch when the grant is for another bundle", async () => {
      const n = await loadFixture(ready);
      const other = await registerBundle(n, "second");
      const jobId = await post(n, { artifactId: other });
      await expectEnded(n, jobId, State.Denied, Refusal.ArtifactMismatch);
    });

    it("denies with NotEnoughVerifiers when nobody can compute", async () => {
      const n = await loadFixture(ready);
      await setStatus(n, n.compute, Status.Suspended);
      await expectEnded(n, await post(n), State.Denied, Refusal.NotEnoughVerifiers);
    });

    it("denies a consent epoch of zero while none was anchored", async () => {
      const n = await loadFixture(ready);
      const scope = label("other-purpose");
      const bundle = await registerBundle(n, "second", { consentScope: scope });
      const rights = n.rights.connect(n.university.account);
      const asked = await terms({ minCohort: 0 });
      const grantId = await rights.requestUsage.staticCall(bundle, scope, asked);
      await rights.requestUsage(bundle, scope, asked);
      await n.rights.connect(n.north.account).grantUsage(grantId, asked);
      const jobId = await post(n, { artifactId: bundle, grantId, purpose: scope, consentEpoch: 0 });
      await expectEnded(n, jobId, State.Denied, Refusal.ConsentEpochStale);
    });

    it("stops at the cap of uses, and a use that comes back can be used again", async () => {
      const n = await loadFixture(ready);
      const [first] = [await post(n, { nonce: 1 }), await post(n, { nonce: 2 }), await post(n, { nonce: 3 })];
      await expectEnded(n, await post(n, { nonce: 4 }), State.Denied, Refusal.UsesExhausted);
      await passDeadline(n, first);
      await n.jobs.connect(n.auditor.node).expireJob(first);
      expect(await usedOf(n)).to.equal(2);
      expect(await stateOf(n, await post(n, { nonce: 5 }))).to.equal(State.Posted);
    });
  });

  describe("claimJob", () => {
    it("gives the job to the first compute node", async () => {
      const n = await loadFixture(ready);
      const jobId = await post(n);
      await expect(claim(n, jobId))
        .to.emit(n.jobs, "JobClaimed")
        .withArgs(jobId, n.compute.id, (d) => d > 0n, 2, someHead);
      await fails(n, claim(n, jobId), "JobLedgerWrongState", jobId, State.Claimed);
    });

    it("reverts for the requester's own organisation", async () => {
      const n = await loadFixture(ready);
      await govern(n, n.participants, "setRoles", [n.university.id, Role.PARTNER | Role.COMPUTE]);
      const jobId = await post(n);
      const promise = n.jobs.connect(n.university.node).claimJob(jobId);
      await fails(n, promise, "JobLedgerNotEligible", jobId, n.university.id);
    });
  });

  describe("commitResult", () => {
    it("asks every active verifier besides executor and requester", async () => {
      const n = await loadFixture(ready);
      await govern(n, n.participants, "setRoles", [n.compute.id, Role.COMPUTE | Role.VERIFIER]);
      await govern(n, n.participants, "setRoles", [n.university.id, Role.PARTNER | Role.VERIFIER]);
      const jobId = await jobIn(n, "Claimed");
      await expect(commitResult(n, jobId))
        .to.emit(n.jobs, "ResultCommitted")
        .withArgs(jobId, RESULT, 3, (d) => d > 0n, 3, someHead);
      await setStatus(n, n.south, Status.Suspended);
      const second = await jobIn(n, "Committed", { nonce: 2 });
      expect((await n.jobs.job(second)).asked).to.equal(2n);
    });

    it("reverts for another compute node and a zero digest", async () => {
      const n = await loadFixture(ready);
      await govern(n, n.participants, "setRoles", [n.auditor.id, Role.COMPUTE | Role.VERIFIER]);
      const jobId = await jobIn(n, "Claimed");
      const promise = n.jobs.connect(n.auditor.node).commitResult(jobId, RESULT);
      await fails(n, promise, "JobLedgerNotExecutor", jobId, n.auditor.id);
      await expect(commitResult(n, jobId, ZERO)).to.be.revertedWithCustomError(n.jobs, "JobLedgerInvalidParameters");
    });

    it("expires at the close of commits when fewer verifiers are left than must agree", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Claimed");
      for (const member of [n.south, n.auditor, n.north]) await setStatus(n, member, Status.Suspended);
      await commitResult(n, jobId);
      expect((await n.jobs.job(jobId)).asked).to.equal(0n);
      await passDeadline(n, jobId);
      await n.jobs.connect(n.compute.node).closeCommits(jobId);
      await expectEnded(n, jobId, State.Expired);
      await expectGivenBack(n);
    });
  });

  describe("commitVerdict", () => {
    it("closes commits with the last verifier asked", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Committed");
      await expect(commitVerdict(n, jobId, n.north))
        .to.emit(n.jobs, "VerdictCommitted")
        .withArgs(jobId, n.north.id, await commitment(n, jobId, n.north), 4, someHead);
      await commitVerdict(n, jobId, n.south);
      expect(await stateOf(n, jobId)).to.equal(State.Committed);
      await expect(commitVerdict(n, jobId, n.auditor))
        .to.emit(n.jobs, "CommitsClosed")
        .withArgs(jobId, 3, (d) => d > 0n, 7, someHead);
      expect(await stateOf(n, jobId)).to.equal(State.Revealing);
    });

    it("reverts for executor and requester", async () => {
      const n = await loadFixture(ready);
      await govern(n, n.participants, "setRoles", [n.compute.id, Role.COMPUTE | Role.VERIFIER]);
      await govern(n, n.participants, "setRoles", [n.university.id, Role.PARTNER | Role.VERIFIER]);
      const jobId = await jobIn(n, "Committed");
      for (const member of [n.compute, n.university]) {
        await fails(n, commitVerdict(n, jobId, member), "JobLedgerNotEligible", jobId, member.id);
      }
    });

    it("reverts on a second commitment, and on an empty one", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Committed");
      for (const empty of [ZERO, ethers.MaxUint256]) {
        const promise = n.jobs.connect(n.north.node).commitVerdict(jobId, ethers.toBeHex(empty, 32));
        await fails(n, promise, "JobLedgerCommitmentMismatch", jobId, n.north.id);
      }
      await commitVerdict(n, jobId, n.north);
      await fails(n, commitVerdict(n, jobId, n.north, OTHER), "JobLedgerAlreadyCommitted", jobId, n.north.id);
    });
  });

  describe("closeCommits", () => {
    it("goes on with enough commitments after the deadline", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Committed");
      await commitVerdict(n, jobId, n.north);
      await commitVerdict(n, jobId, n.south);
      await atDeadline(n, jobId, -1);
      const { deadline } = await n.jobs.job(jobId);
      const early = n.jobs.connect(n.auditor.account).closeCommits(jobId);
      await fails(n, early, "JobLedgerDeadlineNotPassed", jobId, deadline);
      await atDeadline(n, jobId);
      await n.jobs.connect(n.auditor.account).closeCommits(jobId);
      const job = await n.jobs.job(jobId);
      expect([job.state, job.commits]).to.deep.equal([State.Revealing, 2n]);
    });

    it("expires the job with fewer than must agree", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Committed");
      await commitVerdict(n, jobId, n.north);
      await passDeadline(n, jobId);
      await expect(n.jobs.connect(n.auditor.account).closeCommits(jobId))
        .to.emit(n.jobs, "JobEnded")
        .withArgs(jobId, State.Committed, State.Expired, Refusal.None, 5, someHead);
      await expectGivenBack(n);
    });
  });

  describe("revealVerdict", () => {
    it("verifies the job with the last reveal", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Revealing");
      await expect(reveal(n, jobId, n.north))
        .to.emit(n.jobs, "VerdictRevealed")
        .withArgs(jobId, n.north.id, RESULT, possession(n.north, RESULT), true, 8, someHead);
      await reveal(n, jobId, n.south);
      await expect(reveal(n, jobId, n.auditor))
        .to.emit(n.jobs, "JobVerified")
        .withArgs(jobId, RESULT, Level.Replicated, 3, 3, (d) => d > 0n, 11, someHead);
      const result = await n.lineage.artifact(await n.lineage.derivedIdOf(jobId, Kind.Result));
      expect([result.kind, result.contentDigest]).to.deep.equal([Kind.Result, RESULT]);
    });

    it("reverts on a second reveal, and for whoever did not commit", async () => {
      const n = await loadFixture(ready);
      const jobId = await judgedUntilReveal(n, [n.north, n.south]);
      await reveal(n, jobId, n.north);
      await fails(n, reveal(n, jobId, n.north), "JobLedgerAlreadyRevealed", jobId, n.north.id);
      await fails(n, reveal(n, jobId, n.auditor), "JobLedgerCommitmentMismatch", jobId, n.auditor.id);
    });

    it("reverts when anything but what was committed is revealed", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Revealing");
      const jobs = n.jobs.connect(n.north.node);
      const proof = possession(n.north, RESULT);
      for (const opened of [[OTHER, proof, SALT], [RESULT, OTHER, SALT], [RESULT, proof, OTHER]]) {
        await fails(n, jobs.revealVerdict(jobId, ...opened), "JobLedgerCommitmentMismatch", jobId, n.north.id);
      }
    });

    it("Signature replay: rejects commitments made for another job, verifier, contract or chain", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Committed");
      const replays = [
        [n.north, { jobId: digest("another job") }],
        [n.south, { verifier: n.north.id }],
        [n.auditor, { contract: n.rights.target }],
      ];
      for (const [verifier, overrides] of replays) {
        const bound = await commitment(n, jobId, verifier, RESULT, overrides);
        await n.jobs.connect(verifier.node).commitVerdict(jobId, bound);
      }
      for (const [verifier] of replays) {
        await fails(n, reveal(n, jobId, verifier), "JobLedgerCommitmentMismatch", jobId, verifier.id);
      }
      // South copied north's commitment; with north's own possession and salt it still does not open.
      const copied = n.jobs.connect(n.south.node).revealVerdict(jobId, RESULT, possession(n.north, RESULT), SALT);
      await fails(n, copied, "JobLedgerCommitmentMismatch", jobId, n.south.id);
      const second = await jobIn(n, "Committed", { nonce: 2 });
      const elsewhere = await commitment(n, second, n.north, RESULT, { chainId: 1n });
      await n.jobs.connect(n.north.node).commitVerdict(second, elsewhere);
      for (const verifier of [n.south, n.auditor]) await commitVerdict(n, second, verifier);
      await fails(n, reveal(n, second, n.north), "JobLedgerCommitmentMismatch", second, n.north.id);
    });
  });

  describe("the verdict", () => {
    const outcomes = [
      ["Verified", [RESULT, RESULT, RESULT], "all agree"],
      ["Verified", [RESULT, RESULT, null], "enough agree and one stayed away"],
      ["Disputed", [RESULT, RESULT, OTHER], "one dissents"],
      ["Refuted", [OTHER, OTHER, RESULT], "as many as must agree found one other digest"],
      ["Refuted", [OTHER, OTHER, null], "all that came found one other digest"],
      ["Disputed", [OTHER, digest("third"), RESULT], "dissenters contradict each other"],
      ["Disputed", [OTHER, RESULT, null], "one agrees and one dissents"],
    ];
    for (const [state, found, why] of outcomes) {
      it(`is ${state} when ${why}`, async () => {
        const n = await loadFixture(ready);
        const jobId = await judged(n, found);
        const job = await n.jobs.job(jobId);
        const revealed = found.filter((result) => result !== null);
        const agreeing = revealed.filter((result) => result === RESULT).length;
        expect(job.state).to.equal(State[state]);
        expect([job.agreeing, job.dissenting]).to.deep.equal([BigInt(agreeing), BigInt(revealed.length - agreeing)]);
        if (state === "Refuted") await expectGivenBack(n);
      });
    }

    it("is Disputed, not Refuted, when both sides are as many as must agree", async () => {
      const n = await loadFixture(ready);
      await govern(n, n.jobs, "setQuorum", [1]);
      const grantId = await grant(n, { replicas: 1 });
      const jobId = await judged(n, [RESULT, OTHER, OTHER], { grantId });
      expect(await stateOf(n, jobId)).to.equal(State.Disputed);
    });

    it("waits for all that committed, until the deadline", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Revealing");
      await reveal(n, jobId, n.north);
      await reveal(n, jobId, n.south);
      const { deadline } = await n.jobs.job(jobId);
      const close = () => n.jobs.connect(n.compute.node).closeReveals(jobId);
      await fails(n, close(), "JobLedgerDeadlineNotPassed", jobId, deadline);
      await passDeadline(n, jobId);
      await close();
      expect(await stateOf(n, jobId)).to.equal(State.Verified);
    });

    it("is Expired when too few reveal and none dissents", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Revealing");
      await reveal(n, jobId, n.north);
      await passDeadline(n, jobId);
      await n.jobs.connect(n.compute.node).closeReveals(jobId);
      await expectEnded(n, jobId, State.Expired);
      await expectGivenBack(n);
    });
  });

  describe("settleDispute", () => {
    const settle = (n, jobId, upheld) => govern(n, n.jobs, "settleDispute", [jobId, upheld]);
    const longer = async () => {
      const n = await ready();
      await govern(n, n.jobs, "setTimings", [{ ...TIMINGS, dispute: 5000 }]);
      return n;
    };

    it("makes the job Verified when upheld", async () => {
      const n = await loadFixture(longer);
      const jobId = await judged(n, [RESULT, RESULT, OTHER]);
      await settle(n, jobId, true);
      expect(await stateOf(n, jobId)).to.equal(State.Verified);
    });

    it("cannot make a job Verified on which too few agree", async () => {
      const n = await loadFixture(longer);
      const jobId = await judged(n, [RESULT, digest("third"), OTHER]);
      await settle(n, jobId, true);
      await expectEnded(n, jobId, State.Expired);
      await expectGivenBack(n);
    });

    it("makes the job Refuted otherwise", async () => {
      const n = await loadFixture(longer);
      const jobId = await judged(n, [RESULT, RESULT, OTHER]);
      await settle(n, jobId, false);
      await expectEnded(n, jobId, State.Refuted);
      await expectGivenBack(n);
    });

    it("reverts for members, in other states, and after the deadline", async () => {
      const n = await loadFixture(longer);
      const jobId = await judged(n, [RESULT, RESULT, OTHER]);
      await expect(n.jobs.connect(n.north.account).settleDispute(jobId, true))
        .to.be.revertedWithCustomError(n.jobs, "AccessManagedUnauthorized")
        .withArgs(n.north.account.address);
      const { deadline } = await n.jobs.job(jobId);
      await passDeadline(n, jobId);
      const wrapped = (error, args) => n.jobs.interface.encodeErrorResult(error, args);
      await expect(settle(n, jobId, true))
        .to.be.revertedWithCustomError(n.council, "MemberCouncilCallFailed")
        .withArgs((id) => id > 0n, wrapped("JobLedgerDeadlinePassed", [jobId, deadline]));
      await n.jobs.connect(n.auditor.node).expireJob(jobId);
      await expectEnded(n, jobId, State.Refuted);
      await expect(settle(n, jobId, true))
        .to.be.revertedWithCustomError(n.council, "MemberCouncilCallFailed")
        .withArgs((id) => id > 0n, wrapped("JobLedgerWrongState", [jobId, State.Refuted]));
    });
  });

  describe("deadlines", () => {
    const custodian = (n) => n.jobs.connect(n.north.node);
    const acts = {
      Posted: [TIMINGS.claim, (n, id) => claim(n, id), "expireJob", State.Expired],
      Claimed: [TIMINGS.compute, (n, id) => commitResult(n, id), "expireJob", State.Expired],
      Committed: [TIMINGS.commit, (n, id) => commitVerdict(n, id, n.north), "closeCommits", State.Expired],
      Revealing: [TIMINGS.reveal, (n, id) => reveal(n, id, n.north), "closeReveals", State.Expired],
      Verified: [TIMINGS.release, (n, id) => custodian(n).openRelease(id), "expireJob", State.Expired],
      Opened: [
        TIMINGS.release, (n, id) => custodian(n).recordRelease(id, digest("release"), 1), "expireJob", State.Expired,
      ],
    };
    for (const [state, [lasts, act, end, ended]] of Object.entries(acts)) {
      it(`${state} lasts its time to the second, then anybody among the members ends it`, async () => {
        const n = await loadFixture(ready);
        const jobId = await jobIn(n, state);
        const { deadline } = await n.jobs.job(jobId);
        expect(deadline).to.equal(BigInt((await time.latest()) + lasts));
        const finish = (signer) => n.jobs.connect(signer)[end](jobId);
        await time.setNextBlockTimestamp(deadline - 1n);
        await fails(n, finish(n.auditor.node), "JobLedgerDeadlineNotPassed", jobId, deadline);
        await time.setNextBlockTimestamp(deadline);
        await fails(n, act(n, jobId), "JobLedgerDeadlinePassed", jobId, deadline);
        await expect(finish(n.stranger))
          .to.be.revertedWithCustomError(n.participants, "ParticipantRegistryNotMember")
          .withArgs(n.stranger.address);
        await time.setNextBlockTimestamp(deadline);
        await finish(n.auditor.account);
        await expectEnded(n, jobId, ended);
        if (state === "Opened") {
          expect(await accountOf(n)).to.deep.equal([10_000, 0, 1_000]);
          expect(await usedOf(n)).to.equal(1);
        } else {
          await expectGivenBack(n);
        }
      });

      it(`${state} may be left in its last second`, async () => {
        const n = await loadFixture(ready);
        const jobId = await jobIn(n, state);
        await atDeadline(n, jobId, -1);
        await act(n, jobId);
      });
    }

    it("a dispute that nobody settles ends as Refuted", async () => {
      const n = await loadFixture(ready);
      const jobId = await judged(n, [RESULT, RESULT, OTHER]);
      const { deadline } = await n.jobs.job(jobId);
      expect(deadline).to.equal(BigInt((await time.latest()) + TIMINGS.dispute));
      const expire = () => n.jobs.connect(n.auditor.node).expireJob(jobId);
      await fails(n, expire(), "JobLedgerDeadlineNotPassed", jobId, deadline);
      await passDeadline(n, jobId);
      await expire();
      await expectEnded(n, jobId, State.Refuted);
      await expectGivenBack(n);
    });

    it("expireJob reverts in states that end otherwise, and for unknown jobs", async () => {
      const n = await loadFixture(ready);
      const expire = (jobId) => n.jobs.connect(n.auditor.node).expireJob(jobId);
      await fails(n, expire(UNKNOWN), "JobLedgerUnknown", UNKNOWN);
      let nonce = 10;
      for (const state of ["Committed", "Revealing", "Released"]) {
        const jobId = await jobIn(n, state, { nonce: ++nonce });
        await time.increase(10_000);
        await fails(n, expire(jobId), "JobLedgerWrongState", jobId, State[state]);
      }
    });
  });

  describe("openRelease", () => {
    it("spends the reservation for good", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Verified");
      await expect(n.jobs.connect(n.north.node).openRelease(jobId))
        .to.emit(n.jobs, "ReleaseOpened")
        .withArgs(jobId, n.north.id, (d) => d > 0n, 12, someHead)
        .and.to.emit(n.budgets, "BudgetSettled")
        .withArgs(jobId, n.bundle, n.grantId, 1_000);
      expect(await accountOf(n)).to.deep.equal([10_000, 0, 1_000]);
      expect(await usedOf(n)).to.equal(1);
    });

    it("reverts for a custodian of other keys", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Verified");
      const jobs = n.jobs.connect(n.south.node);
      await fails(n, jobs.openRelease(jobId), "JobLedgerNotCustodian", jobId, n.south.id);
      await fails(n, jobs.refuseRelease(jobId, Refusal.ResultInvalid), "JobLedgerNotCustodian", jobId, n.south.id);
      await n.jobs.connect(n.north.node).openRelease(jobId);
      await fails(n, jobs.recordRelease(jobId, digest("release"), 1), "JobLedgerNotCustodian", jobId, n.south.id);
    });

    const changes = {
      RequesterNotActive: (n) => setStatus(n, n.university, Status.Suspended),
      ArtifactFrozen: (n) => n.lineage.connect(n.north.account).setFrozen(n.bundle, true),
      KeyDomainNotActive: (n) => n.keys.connect(n.north.account).markCompromised(n.keyId),
      StewardNotActive: (n) => govern(n, n.participants, "setRoles", [n.north.id, Role.CUSTODIAN]),
      PolicyVersionStale: (n) => n.lineage.connect(n.north.account).setPolicy(n.bundle, digest("new policy")),
      GrantRevoked: (n) => n.rights.connect(n.north.account).revokeGrantee(n.university.id),
      ConsentEpochStale: (n) => anchor(n, 2, 50),
    };
    for (const [reason, change] of Object.entries(changes)) {
      const state = reason === "ConsentEpochStale" ? "StaleConsent" : "Refused";
      it(`ends the job as ${state} with ${reason} when that changed since admission`, async () => {
        const n = await loadFixture(ready);
        const jobId = await jobIn(n, "Verified");
        await change(n);
        await expect(n.jobs.connect(n.north.node).openRelease(jobId))
          .to.emit(n.jobs, "JobEnded")
          .withArgs(jobId, State.Verified, State[state], Refusal[reason], 12, someHead);
        await expectEnded(n, jobId, State[state], Refusal[reason]);
        await expectGivenBack(n);
      });
    }

    it("ends the job as Refused when the grant or the retention ran out meanwhile", async () => {
      const n = await loadFixture(ready);
      const soon = (await time.latest()) + 500;
      const retained = await registerBundle(n, "second", { retainUntil: soon });
      await n.budgets.connect(n.north.account).setBudget(retained, 10_000);
      const onRetained = await grant(n, {}, retained);
      const short = await grant(n, { expiresAt: soon });
      const expired = await jobIn(n, "Verified", { nonce: 1, grantId: short });
      const passed = await jobIn(n, "Verified", { nonce: 2, grantId: onRetained, artifactId: retained });
      await time.increaseTo(soon);
      for (const [jobId, reason] of [[expired, "GrantExpired"], [passed, "RetentionPassed"]]) {
        await n.jobs.connect(n.north.node).openRelease(jobId);
        await expectEnded(n, jobId, State.Refused, Refusal[reason]);
      }
    });

    it("ends the job as Refused when the result itself was frozen", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Verified");
      const result = await n.lineage.derivedIdOf(jobId, Kind.Result);
      await govern(n, n.lineage, "setFrozen", [result, true]);
      expect((await n.lineage.artifact(result)).frozen).to.equal(Freeze.ByCouncil);
      await n.jobs.connect(n.north.node).openRelease(jobId);
      await expectEnded(n, jobId, State.Refused, Refusal.ArtifactFrozen);
    });

    it("is not blocked by other jobs that used the grant up meanwhile", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Verified");
      await post(n, { nonce: 2 });
      await post(n, { nonce: 3 });
      await n.jobs.connect(n.north.node).openRelease(jobId);
      expect(await stateOf(n, jobId)).to.equal(State.Opened);
    });
  });

  describe("refuseRelease", () => {
    it("ends the job as Refused, with the custodian's reason", async () => {
      const n = await loadFixture(ready);
      for (const [nonce, reason] of [[1, "PossessionUnproven"], [2, "ResultInvalid"], [3, "LevelTooLow"]]) {
        const jobId = await jobIn(n, "Verified", { nonce });
        await expect(n.jobs.connect(n.north.node).refuseRelease(jobId, Refusal[reason]))
          .to.emit(n.jobs, "JobEnded")
          .withArgs(jobId, State.Verified, State.Refused, Refusal[reason], 12, someHead);
        await expectGivenBack(n);
      }
    });

    it("reverts without a reason, and once decryption was announced", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Verified");
      const jobs = n.jobs.connect(n.north.node);
      await expect(jobs.refuseRelease(jobId, Refusal.None))
        .to.be.revertedWithCustomError(n.jobs, "JobLedgerInvalidParameters");
      await jobs.openRelease(jobId);
      const late = jobs.refuseRelease(jobId, Refusal.ResultInvalid);
      await fails(n, late, "JobLedgerWrongState", jobId, State.Opened);
    });
  });

  describe("recordRelease", () => {
    it("logs the release, once", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Opened");
      const jobs = n.jobs.connect(n.north.node);
      const release = digest("release");
      await expect(jobs.recordRelease(jobId, release, 1_500_000))
        .to.emit(n.jobs, "JobReleased")
        .withArgs(jobId, n.north.id, release, 1_500_000, 1_000, 13, someHead);
      const job = await n.jobs.job(jobId);
      expect([job.state, job.releaseDigest, job.deadline]).to.deep.equal([State.Released, release, 0n]);
      await fails(n, jobs.recordRelease(jobId, release, 1), "JobLedgerWrongState", jobId, State.Released);
    });

    it("reverts without a digest or without noise", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Opened");
      const jobs = n.jobs.connect(n.north.node);
      for (const [release, sigma] of [[ZERO, 1], [digest("release"), 0]]) {
        await expect(jobs.recordRelease(jobId, release, sigma))
          .to.be.revertedWithCustomError(n.jobs, "JobLedgerInvalidParameters");
      }
    });
  });

  it("lets no step be taken in a state that is not its own", async () => {
    const n = await loadFixture(ready);
    const steps = {
      Posted: (id) => claim(n, id),
      Claimed: (id) => commitResult(n, id),
      Committed: (id) => commitVerdict(n, id, n.north),
      Revealing: (id) => reveal(n, id, n.north),
      Verified: (id) => n.jobs.connect(n.north.node).openRelease(id),
      Opened: (id) => n.jobs.connect(n.north.node).recordRelease(id, digest("release"), 1),
    };
    const others = {
      Committed: (id) => n.jobs.connect(n.auditor.node).closeCommits(id),
      Revealing: (id) => n.jobs.connect(n.auditor.node).closeReveals(id),
      Verified: (id) => n.jobs.connect(n.north.node).refuseRelease(id, Refusal.ResultInvalid),
    };
    for (const step of [...Object.values(steps), ...Object.values(others)]) {
      await fails(n, step(UNKNOWN), "JobLedgerUnknown", UNKNOWN);
    }
    const grantId = await grant(n, { uses: 20 });
    let nonce = 0;
    for (const state of [...Object.keys(steps), "Released"]) {
      const jobId = await jobIn(n, state, { nonce: ++nonce, rhoMicro: 10, grantId });
      for (const [owned, step] of [...Object.entries(steps), ...Object.entries(others)]) {
        if (owned !== state) await fails(n, step(jobId), "JobLedgerWrongState", jobId, State[state]);
      }
    }
  });

  describe("setTimings and setQuorum", () => {
    it("change what later states and jobs get", async () => {
      const n = await loadFixture(ready);
      await expect(govern(n, n.jobs, "setTimings", [{ ...TIMINGS, claim: 7 }]))
        .to.emit(n.jobs, "TimingsChanged")
        .withArgs((t) => t.claim === 7n && t.release === 600n);
      expect(await n.jobs.timings()).to.deep.equal([7n, 200n, 300n, 400n, 500n, 600n]);
      await expect(govern(n, n.jobs, "setQuorum", [3])).to.emit(n.jobs, "QuorumChanged").withArgs(3);
      const job = await n.jobs.job(await post(n));
      expect([job.replicas, job.deadline]).to.deep.equal([3n, BigInt((await time.latest()) + 7)]);
    });

    it("revert for zeros, at deployment too", async () => {
      const n = await loadFixture(ready);
      const reason = n.jobs.interface.encodeErrorResult("JobLedgerInvalidParameters", []);
      const refused = (promise) =>
        expect(promise)
          .to.be.revertedWithCustomError(n.council, "MemberCouncilCallFailed")
          .withArgs((id) => id > 0n, reason);
      for (const name of Object.keys(TIMINGS)) {
        await refused(govern(n, n.jobs, "setTimings", [{ ...TIMINGS, [name]: 0 }]));
      }
      await refused(govern(n, n.jobs, "setQuorum", [0]));
      const some = Array(7).fill(n.manager.target);
      for (const [timings, quorum] of [[{ ...TIMINGS, commit: 0 }, 2], [TIMINGS, 0]]) {
        await expect(ethers.deployContract("JobLedger", [...some, timings, quorum]))
          .to.be.revertedWithCustomError(n.jobs, "JobLedgerInvalidParameters");
      }
    });
  });
});

async function judgedUntilReveal(n, verifiers) {
  const jobId = await jobIn(n, "Committed");
  for (const verifier of verifiers) await commitVerdict(n, jobId, verifier);
  await passDeadline(n, jobId);
  await n.jobs.connect(n.auditor.node).closeCommits(jobId);
  return jobId;
}
