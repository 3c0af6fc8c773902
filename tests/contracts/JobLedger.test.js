import { expect } from "chai";
import {
  Freeze, KERNEL, Kind, Level, QUORUM, RESULT, Refusal, Role, SALT, State, Status, TIMINGS, ZERO, anchor,
  ask, atDeadline, claim, commitResult, commitVerdict, commitment, digest, disputable, encode, ethers, given, govern, grant,
  history, jobIn, judged, label, loadFixture, opening, passDeadline, possession, post, ready, registerBundle, request, reveal,
  setStatus, settle, signed, stateOf, terms, time, verdicts,
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
  expect(await n.rights.committedUnder(n.grantId)).to.equal(0n);
  expect(await usedOf(n)).to.equal(0);
}

async function expectEnded(n, jobId, state, reason = Refusal.None) {
  const { state: found, refusal, deadline } = await n.jobs.progress(jobId);
  expect([found, refusal, deadline]).to.deep.equal([state, reason, 0n]);
}

describe("JobLedger", () => {
  describe("postJob", () => {
    it("admits: one use consumed, rho reserved, everything fixed", async () => {
      const n = await loadFixture(ready);
      const asked = request(n);
      const jobId = await n.jobs.jobIdOf(n.university.id, asked);
      const { chainId } = await ethers.provider.getNetwork();
      const words = "tuple(bytes32,bytes32,bytes32,bytes32,bytes32,uint64,uint32,uint64,bool,uint64)";
      expect(jobId).to.equal(ethers.keccak256(encode(
        ["uint256", "address", "bytes32", words], [chainId, n.jobs.target, n.university.id, Object.values(asked)],
      )));
      const now = (await time.latest()) + 5;
      await time.setNextBlockTimestamp(now);
      await expect(n.jobs.connect(n.university.account).postJob(asked))
        .to.emit(n.jobs, "JobPosted")
        .withArgs(
          jobId, n.university.id, n.bundle, (r) => r.kernelId === KERNEL, QUORUM, 3, now + TIMINGS.claim, 1, someHead,
        );
      const { number } = await ethers.provider.getBlock("latest");
      expect([...(await n.jobs.progress(jobId))]).to.deep.equal([
        State.Posted, Refusal.None, 2n, 3n, 0n, 0n, 0n, 0n, BigInt(now + TIMINGS.claim), BigInt(number),
      ]);
      expect(await accountOf(n)).to.deep.equal([10_000, 1_000, 0]);
      expect(await usedOf(n)).to.equal(1);
    });

    it("asks for as many agreeing verifiers as the stricter of grant and network", async () => {
      const n = await loadFixture(ready);
      const strict = await grant(n, { replicas: 3 });
      const one = await grant(n, { replicas: 1 });
      expect((await n.jobs.progress(await post(n, { grantId: strict }))).replicas).to.equal(3n);
      expect((await n.jobs.progress(await post(n, { grantId: one, nonce: 2 }))).replicas).to.equal(2n);
    });

    it("reverts for a repeated request, also after a denial", async () => {
      const n = await loadFixture(ready);
      const jobs = n.jobs.connect(n.university.account);
      const first = await post(n);
      await fails(n, jobs.postJob(request(n)), "JobLedgerDuplicate", first);
      const denied = await post(n, { nonce: 2, policyVersion: 9 });
      expect(await stateOf(n, denied)).to.equal(State.Denied);
      await fails(n, jobs.postJob(request(n, { nonce: 2, policyVersion: 9 })), "JobLedgerDuplicate", denied);
    });

    it("reverts for a zero parameters' digest or zero rho", async () => {
      const n = await loadFixture(ready);
      const jobs = n.jobs.connect(n.university.account);
      for (const overrides of [{ parametersDigest: ZERO }, { rhoMicro: 0 }]) {
        const asked = request(n, overrides);
        await fails(n, jobs.postJob(asked), "JobLedgerInvalidRequest", asked.parametersDigest);
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
        const asked = request(n, overrides);
        const jobId = await n.jobs.jobIdOf(as.id, asked);
        await expect(n.jobs.connect(as.account).postJob(asked))
          .to.emit(n.jobs, "JobDenied")
          .withArgs(
            jobId, as.id, asked.artifactId, (r) => r.grantId === asked.grantId, Refusal[reason], 1, someHead,
          );
        await expectEnded(n, jobId, State.Denied, Refusal[reason]);
        expect([await accountOf(n), await usedOf(n)]).to.deep.equal(before);
        await fails(n, claim(n, jobId), "JobLedgerWrongState", jobId, State.Denied);
        const expired = n.jobs.connect(n.compute.node).expireJob(as.id, asked);
        await fails(n, expired, "JobLedgerWrongState", jobId, State.Denied);
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
      await n.jobs.connect(n.auditor.node).expireJob(...given(n, first));
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

    it("is taken over by another compute node once the claim lapsed, and by nobody after three", async () => {
      const n = await loadFixture(ready);
      for (const member of [n.auditor, n.south]) {
        await govern(n, n.participants, "setRoles", [member.id, Role.VERIFIER | Role.COMPUTE]);
      }
      const by = (member, jobId) => n.jobs.connect(member.node).claimJob(jobId);
      const jobId = await jobIn(n, "Claimed", { consentEpoch: 1 });
      const { deadline } = await n.jobs.progress(jobId);
      await time.setNextBlockTimestamp(deadline - 1n);
      await fails(n, by(n.auditor, jobId), "JobLedgerWrongState", jobId, State.Claimed);
      await atDeadline(n, jobId);
      await fails(n, by(n.compute, jobId), "JobLedgerNotEligible", jobId, n.compute.id);
      await by(n.auditor, jobId);
      await fails(n, commitResult(n, jobId), "JobLedgerNotExecutor", jobId, n.compute.id);
      await passDeadline(n, jobId);
      await by(n.compute, jobId);
      expect((await n.jobs.progress(jobId)).turns).to.equal(3n);
      await passDeadline(n, jobId);
      await fails(n, by(n.south, jobId), "JobLedgerWrongState", jobId, State.Claimed);
      await n.jobs.connect(n.north.node).expireJob(...given(n, jobId));
      await expectEnded(n, jobId, State.Expired);
    });

    it("leaves time to take a lapsed claim over before the job can be ended", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Claimed");
      const { deadline } = await n.jobs.progress(jobId);
      const until = deadline + BigInt(TIMINGS.claim);
      await time.setNextBlockTimestamp(until - 1n);
      const early = n.jobs.connect(n.auditor.node).expireJob(...given(n, jobId));
      await fails(n, early, "JobLedgerDeadlineNotPassed", jobId, until);
      await time.setNextBlockTimestamp(until);
      await n.jobs.connect(n.auditor.node).expireJob(...given(n, jobId));
      await expectGivenBack(n);
    });

    it("reverts for the requester's own organisation", async () => {
      const n = await loadFixture(ready);
      await govern(n, n.participants, "setRoles", [n.university.id, Role.PARTNER | Role.COMPUTE]);
      const jobId = await post(n);
      const promise = n.jobs.connect(n.university.node).claimJob(jobId);
      await fails(n, promise, "JobLedgerNotEligible", jobId, n.university.id);
    });

    it("is not claimed by a verifier without which too few could agree", async () => {
      const n = await loadFixture(ready);
      await govern(n, n.participants, "setRoles", [n.compute.id, Role.COMPUTE | Role.VERIFIER]);
      const grantId = await grant(n, { replicas: 4 });
      const jobId = await post(n, { grantId });
      expect((await n.jobs.progress(jobId)).asked).to.equal(4n);
      const claim = () => n.jobs.connect(n.compute.node).claimJob(jobId);
      await fails(n, claim(), "JobLedgerNotEligible", jobId, n.compute.id);
      await govern(n, n.participants, "setRoles", [n.compute.id, Role.COMPUTE]);
      await expect(claim()).to.emit(n.jobs, "JobClaimed");
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
        .withArgs(jobId, n.compute.id, RESULT, 3, (d) => d > 0n, 3, someHead);
      await setStatus(n, n.south, Status.Suspended);
      const second = await jobIn(n, "Committed", { nonce: 2 });
      expect((await n.jobs.progress(second)).asked).to.equal(2n);
    });

    it("brings along the words that verifiers already gave", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Claimed");
      const words = await verdicts(n, jobId, [[n.north, RESULT], [n.south, RESULT], [n.auditor, RESULT]]);
      await expect(commitResult(n, jobId, RESULT, words))
        .to.emit(n.jobs, "ResultCommitted")
        .withArgs(jobId, n.compute.id, RESULT, 3, (d) => d > 0n, 3, someHead)
        .and.to.emit(n.jobs, "CommitsClosed")
        .withArgs(jobId, 3, (d) => d > 0n, 7, someHead);
      expect(await stateOf(n, jobId)).to.equal(State.Revealing);
    });

    it("reverts for another compute node and a zero digest", async () => {
      const n = await loadFixture(ready);
      await govern(n, n.participants, "setRoles", [n.auditor.id, Role.COMPUTE | Role.VERIFIER]);
      const jobId = await jobIn(n, "Claimed");
      const promise = n.jobs.connect(n.auditor.node).commitResult(jobId, RESULT, []);
      await fails(n, promise, "JobLedgerNotExecutor", jobId, n.auditor.id);
      await expect(commitResult(n, jobId, ZERO)).to.be.revertedWithCustomError(n.jobs, "JobLedgerInvalidParameters");
    });

    it("expires at the close of commits when fewer verifiers are left than must agree", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Claimed");
      for (const member of [n.south, n.auditor, n.north]) await setStatus(n, member, Status.Suspended);
      await commitResult(n, jobId);
      await passDeadline(n, jobId);
      await n.jobs.connect(n.compute.node).closeCommits(...given(n, jobId));
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

    it("reverts on a second commitment, in the same batch as in a later one", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Committed");
      const [word] = await verdicts(n, jobId, [[n.north, RESULT]]);
      const jobs = n.jobs.connect(n.compute.node);
      await fails(n, jobs.commitVerdicts(jobId, [word, word]), "JobLedgerAlreadyCommitted", jobId, n.north.id);
      const descending = (await verdicts(n, jobId, [[n.north, RESULT], [n.south, RESULT]])).reverse();
      await expect(jobs.commitVerdicts(jobId, descending))
        .to.be.revertedWithCustomError(n.jobs, "JobLedgerAlreadyCommitted");
      await commitVerdict(n, jobId, n.north);
      await fails(n, commitVerdict(n, jobId, n.north, OTHER), "JobLedgerAlreadyCommitted", jobId, n.north.id);
      await fails(n, jobs.commitVerdicts(jobId, Array(3).fill(word)), "JobLedgerTooManyVerdicts", jobId, 3);
    });

    it("takes a verifier's word from any member, and from nobody else", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Committed");
      const words = await verdicts(n, jobId, [[n.north, RESULT], [n.south, RESULT]]);
      await expect(n.jobs.connect(n.stranger).commitVerdicts(jobId, words))
        .to.be.revertedWithCustomError(n.participants, "ParticipantRegistryNotMember")
        .withArgs(n.stranger.address);
      await n.jobs.connect(n.university.account).commitVerdicts(jobId, words);
      expect((await n.jobs.progress(jobId)).commits).to.equal(2n);
      await commitVerdict(n, jobId, n.auditor);
      expect(await stateOf(n, jobId)).to.equal(State.Revealing);
    });

    it("Signature replay: a word holds for one job, contract and chain, until its time is over", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Committed");
      const bound = await commitment(n, jobId, n.north);
      const bring = (word) => n.jobs.connect(n.north.node).commitVerdicts(jobId, [word]);
      const elsewhere = [
        { signedJob: digest("another job") },
        { domain: { chainId: 1n } },
        { domain: { verifyingContract: n.rights.target } },
        { domain: { version: "2" } },
      ];
      for (const overrides of elsewhere) {
        // Whoever it is that such a signature recovers to, it is no member.
        await expect(bring(await signed(n, jobId, n.north, bound, overrides)))
          .to.be.revertedWithCustomError(n.participants, "ParticipantRegistryNotMember");
      }
      const word = await signed(n, jobId, n.north, bound);
      await expect(bring({ ...word, commitment: OTHER }))
        .to.be.revertedWithCustomError(n.participants, "ParticipantRegistryNotMember");
      const deadline = (await time.latest()) + 50;
      const brief = await signed(n, jobId, n.north, bound, { deadline });
      await time.setNextBlockTimestamp(deadline);
      await fails(n, bring(brief), "JobLedgerSignatureExpired", n.north.node.address, deadline);
      await bring(word);
    });
  });

  describe("closeCommits", () => {
    it("goes on with enough commitments after the deadline", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Committed");
      await commitVerdict(n, jobId, n.north);
      await commitVerdict(n, jobId, n.south);
      await atDeadline(n, jobId, -1);
      const { deadline } = await n.jobs.progress(jobId);
      const early = n.jobs.connect(n.auditor.account).closeCommits(...given(n, jobId));
      await fails(n, early, "JobLedgerDeadlineNotPassed", jobId, deadline);
      await atDeadline(n, jobId);
      await n.jobs.connect(n.auditor.account).closeCommits(...given(n, jobId));
      const job = await n.jobs.progress(jobId);
      expect([job.state, job.commits]).to.deep.equal([State.Revealing, 2n]);
    });

    it("expires the job with fewer than must agree", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Committed");
      await commitVerdict(n, jobId, n.north);
      await passDeadline(n, jobId);
      await expect(n.jobs.connect(n.auditor.account).closeCommits(...given(n, jobId)))
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
        .withArgs(jobId, Level.Replicated, 3, 3, (d) => d > 0n, 11, someHead);
    });

    it("takes all openings in one call, from any member", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Revealing");
      const committed = await history(n, jobId);
      const openings = [n.auditor, n.north, n.south].map((verifier) => opening(committed, verifier));
      await n.jobs.connect(n.compute.node).revealVerdicts(...given(n, jobId), committed, openings);
      const job = await n.jobs.progress(jobId);
      expect([job.state, job.agreeing]).to.deep.equal([State.Verified, 3n]);
    });

    it("reverts when the events shown are not those of the job, whichever of them is altered", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Revealing");
      await reveal(n, jobId, n.auditor);
      const whole = await history(n, jobId);
      const swap = ([first, second, ...rest]) => [second, first, ...rest];
      const altered = [
        { head: OTHER }, { executor: n.north.id }, { resultDigest: OTHER }, { deadline: 1 }, { revealed: [OTHER] },
        { revealed: [] }, { revealed: [...whole.revealed, OTHER] }, { verifiers: swap(whole.verifiers) },
        { commitments: swap(whole.commitments) }, { commitments: whole.commitments.slice(1) },
        { verifiers: whole.verifiers.slice(1), commitments: whole.commitments.slice(1) },
      ];
      const bring = (committed) => n.jobs.connect(n.north.node)
        .revealVerdicts(...given(n, jobId), committed, [opening(whole, n.north)]);
      for (const change of altered) {
        await fails(n, bring({ ...whole, ...change }), "JobLedgerHistoryMismatch", jobId);
      }
      await bring(whole);
    });

    it("reverts for another request than was posted", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Revealing");
      const [requester, asked] = given(n, jobId);
      const dearer = { ...asked, rhoMicro: 1_001 };
      const other = await n.jobs.jobIdOf(requester, dearer);
      const committed = await history(n, jobId);
      const jobs = n.jobs.connect(n.north.node);
      await fails(n, jobs.revealVerdicts(requester, dearer, committed, []), "JobLedgerUnknown", other);
      await fails(n, jobs.closeReveals(n.auditor.id, asked), "JobLedgerUnknown", await n.jobs.jobIdOf(n.auditor.id, asked));
    });

    it("reverts on a second reveal, and for whoever did not commit", async () => {
      const n = await loadFixture(ready);
      const jobId = await judgedUntilReveal(n, [n.north, n.south]);
      await reveal(n, jobId, n.north);
      await fails(n, reveal(n, jobId, n.north), "JobLedgerAlreadyRevealed", jobId, n.north.id);
      await fails(n, reveal(n, jobId, n.auditor), "JobLedgerCommitmentMismatch", jobId, n.north.id);
      await expect(reveal(n, jobId, n.south, RESULT, { position: 2 })).to.be.revertedWithPanic(0x32);
    });

    it("reverts for the digest zero, which stands for a verdict that was not revealed", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Committed");
      await commitVerdict(n, jobId, n.north);
      await commitVerdict(n, jobId, n.south);
      await commitVerdict(n, jobId, n.auditor, ZERO);
      await reveal(n, jobId, n.north);
      await expect(reveal(n, jobId, n.auditor, ZERO)).to.be.revertedWithCustomError(
        n.jobs,
        "JobLedgerInvalidParameters"
      );
      await reveal(n, jobId, n.south);
      await passDeadline(n, jobId);
      await n.jobs.connect(n.compute.node).closeReveals(...given(n, jobId));
      expect(await stateOf(n, jobId)).to.equal(State.Verified);
    });

    it("reverts when anything but what was committed is revealed", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Revealing");
      for (const opened of [{ resultDigest: OTHER }, { possession: OTHER }, { salt: OTHER }]) {
        await fails(n, reveal(n, jobId, n.north, RESULT, opened), "JobLedgerCommitmentMismatch", jobId, n.north.id);
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
        await n.jobs.connect(verifier.node).commitVerdicts(jobId, [await signed(n, jobId, verifier, bound)]);
      }
      for (const [verifier] of replays) {
        await fails(n, reveal(n, jobId, verifier), "JobLedgerCommitmentMismatch", jobId, verifier.id);
      }
      // South copied north's commitment; with north's own possession and salt it still does not open.
      const copied = reveal(n, jobId, n.south, RESULT, { possession: possession(n.north, RESULT) });
      await fails(n, copied, "JobLedgerCommitmentMismatch", jobId, n.south.id);
      const second = await jobIn(n, "Committed", { nonce: 2 });
      const elsewhere = await commitment(n, second, n.north, RESULT, { chainId: 1n });
      await n.jobs.connect(n.north.node).commitVerdicts(second, [await signed(n, second, n.north, elsewhere)]);
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
        const job = await n.jobs.progress(jobId);
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
      const { deadline } = await n.jobs.progress(jobId);
      const close = () => n.jobs.connect(n.compute.node).closeReveals(...given(n, jobId));
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
      await n.jobs.connect(n.compute.node).closeReveals(...given(n, jobId));
      await expectEnded(n, jobId, State.Expired);
      await expectGivenBack(n);
    });
  });

  describe("settleDispute", () => {
    it("makes the job Verified when upheld", async () => {
      const n = await loadFixture(disputable);
      const jobId = await judged(n, [RESULT, RESULT, OTHER]);
      await settle(n, jobId, true);
      expect(await stateOf(n, jobId)).to.equal(State.Verified);
    });

    it("cannot make a job Verified on which too few agree", async () => {
      const n = await loadFixture(disputable);
      const jobId = await judged(n, [RESULT, digest("third"), OTHER]);
      await settle(n, jobId, true);
      await expectEnded(n, jobId, State.Expired);
      await expectGivenBack(n);
    });

    it("makes the job Refuted otherwise", async () => {
      const n = await loadFixture(disputable);
      const jobId = await judged(n, [RESULT, RESULT, OTHER]);
      await settle(n, jobId, false);
      await expectEnded(n, jobId, State.Refuted, Refusal.ResultInvalid);
      await expectGivenBack(n);
    });

    it("reverts for members, in other states, and after the deadline", async () => {
      const n = await loadFixture(disputable);
      const jobId = await judged(n, [RESULT, RESULT, OTHER]);
      await expect(n.jobs.connect(n.north.account).settleDispute(...given(n, jobId), true))
        .to.be.revertedWithCustomError(n.jobs, "AccessManagedUnauthorized")
        .withArgs(n.north.account.address);
      const { deadline } = await n.jobs.progress(jobId);
      await passDeadline(n, jobId);
      const wrapped = (error, args) => n.jobs.interface.encodeErrorResult(error, args);
      await expect(settle(n, jobId, true))
        .to.be.revertedWithCustomError(n.council, "MemberCouncilCallFailed")
        .withArgs((id) => id > 0n, wrapped("JobLedgerDeadlinePassed", [jobId, deadline]));
      await n.jobs.connect(n.auditor.node).expireJob(...given(n, jobId));
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
      Verified: [TIMINGS.release, (n, id) => custodian(n).openRelease(...given(n, id)), "expireJob", State.Expired],
      Opened: [
        TIMINGS.release, (n, id) => custodian(n).recordRelease(id, digest("release"), 1), "expireJob", State.Expired,
      ],
    };
    for (const [state, [lasts, act, end, ended]] of Object.entries(acts)) {
      it(`${state} lasts its time to the second, then anybody among the members ends it`, async () => {
        const n = await loadFixture(ready);
        const jobId = await jobIn(n, state);
        const { deadline } = await n.jobs.progress(jobId);
        expect(deadline).to.equal(BigInt((await time.latest()) + lasts));
        const finish = (signer) => n.jobs.connect(signer)[end](...given(n, jobId));
        await time.setNextBlockTimestamp(deadline - 1n);
        await fails(n, finish(n.auditor.node), "JobLedgerDeadlineNotPassed", jobId, deadline);
        await time.setNextBlockTimestamp(deadline);
        await fails(n, act(n, jobId), "JobLedgerDeadlinePassed", jobId, deadline);
        if (state === "Claimed") await time.increaseTo(deadline + BigInt(TIMINGS.claim));
        await expect(finish(n.stranger))
          .to.be.revertedWithCustomError(n.participants, "ParticipantRegistryNotMember")
          .withArgs(n.stranger.address);
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
      const { deadline } = await n.jobs.progress(jobId);
      expect(deadline).to.equal(BigInt((await time.latest()) + TIMINGS.dispute));
      const expire = () => n.jobs.connect(n.auditor.node).expireJob(...given(n, jobId));
      await fails(n, expire(), "JobLedgerDeadlineNotPassed", jobId, deadline);
      await passDeadline(n, jobId);
      await expire();
      await expectEnded(n, jobId, State.Refuted);
      await expectGivenBack(n);
    });

    it("expireJob reverts in states that end otherwise, and for unknown jobs", async () => {
      const n = await loadFixture(ready);
      const expire = (jobId) => n.jobs.connect(n.auditor.node).expireJob(...given(n, jobId));
      const nobodys = await n.jobs.jobIdOf(...given(n, UNKNOWN));
      await fails(n, expire(nobodys), "JobLedgerUnknown", nobodys);
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
      await expect(n.jobs.connect(n.north.node).openRelease(...given(n, jobId)))
        .to.emit(n.jobs, "ReleaseOpened")
        .withArgs(jobId, n.north.id, (d) => d > 0n, 12, someHead);
      expect(await accountOf(n)).to.deep.equal([10_000, 0, 1_000]);
      expect(await usedOf(n)).to.equal(1);
    });

    it("reverts for a custodian of other keys", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Verified");
      const jobs = n.jobs.connect(n.south.node);
      await fails(n, jobs.openRelease(...given(n, jobId)), "JobLedgerNotCustodian", jobId, n.south.id);
      await fails(n, jobs.refuseRelease(...given(n, jobId), Refusal.ResultInvalid), "JobLedgerNotCustodian", jobId, n.south.id);
      await n.jobs.connect(n.north.node).openRelease(...given(n, jobId));
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
        await expect(n.jobs.connect(n.north.node).openRelease(...given(n, jobId)))
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
        await n.jobs.connect(n.north.node).openRelease(...given(n, jobId));
        await expectEnded(n, jobId, State.Refused, Refusal[reason]);
      }
    });

    it("ends the job as Refused when the result itself was frozen", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Verified");
      const result = await n.lineage.derivedIdOf(jobId, Kind.Result);
      await govern(n, n.lineage, "setFrozen", [result, true]);
      expect((await n.lineage.artifact(result)).frozen).to.equal(Freeze.ByCouncil);
      await n.jobs.connect(n.north.node).openRelease(...given(n, jobId));
      await expectEnded(n, jobId, State.Refused, Refusal.ArtifactFrozen);
    });

    it("is not blocked by other jobs that used the grant up meanwhile", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Verified");
      await post(n, { nonce: 2 });
      await post(n, { nonce: 3 });
      await n.jobs.connect(n.north.node).openRelease(...given(n, jobId));
      expect(await stateOf(n, jobId)).to.equal(State.Opened);
    });
  });

  describe("refuseRelease", () => {
    it("ends the job as Refused, with the custodian's reason", async () => {
      const n = await loadFixture(ready);
      for (const [nonce, reason] of [[1, "PossessionUnproven"], [2, "ResultInvalid"], [3, "LevelTooLow"]]) {
        const jobId = await jobIn(n, "Verified", { nonce });
        await expect(n.jobs.connect(n.north.node).refuseRelease(...given(n, jobId), Refusal[reason]))
          .to.emit(n.jobs, "JobEnded")
          .withArgs(jobId, State.Verified, State.Refused, Refusal[reason], 12, someHead);
        await expectGivenBack(n);
      }
    });

    it("reverts without a reason, and once decryption was announced", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Verified");
      const jobs = n.jobs.connect(n.north.node);
      await expect(jobs.refuseRelease(...given(n, jobId), Refusal.None))
        .to.be.revertedWithCustomError(n.jobs, "JobLedgerInvalidParameters");
      await jobs.openRelease(...given(n, jobId));
      const late = jobs.refuseRelease(...given(n, jobId), Refusal.ResultInvalid);
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
        .withArgs(jobId, n.north.id, release, 1_500_000, 13, someHead);
      await expectEnded(n, jobId, State.Released);
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
      Verified: (id) => n.jobs.connect(n.north.node).openRelease(...given(n, id)),
      Opened: (id) => n.jobs.connect(n.north.node).recordRelease(id, digest("release"), 1),
    };
    const others = {
      Committed: (id) => n.jobs.connect(n.auditor.node).closeCommits(...given(n, id)),
      Revealing: (id) => n.jobs.connect(n.auditor.node).closeReveals(...given(n, id)),
      Verified: (id) => n.jobs.connect(n.north.node).refuseRelease(...given(n, id), Refusal.ResultInvalid),
    };
    const nobodys = await n.jobs.jobIdOf(...given(n, UNKNOWN));
    for (const step of [...Object.values(steps), ...Object.values(others)]) {
      await fails(n, step(nobodys), "JobLedgerUnknown", nobodys);
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
      const job = await n.jobs.progress(await post(n));
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
      const some = Array(6).fill(n.manager.target);
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
  await n.jobs.connect(n.auditor.node).closeCommits(...given(n, jobId));
  return jobId;
}
