import { expect } from "chai";
import {
  RESULT, RULE, State, Status, claim, digest, disputable, ethers, expectGovernedRevert, given, govern,
  jobIn, judged, loadFixture, passDeadline, ready, report, reveal, series, settle, stateOf, time,
} from "./network.js";

const OTHER = digest("other");
const THIRD = digest("third");
const Fault = Object.freeze({ RefutedResult: 1n, WrongVerdict: 2n, UnrevealedVerdict: 3n, LapsedClaim: 4n });

async function faults(n, jobId) {
  const logs = await n.reputation.queryFilter(n.reputation.filters.FaultRecorded(null, jobId));
  return logs.map(({ args }) => [args.organisation, args.fault, args.points]);
}

const refuted = (n, overrides) => judged(n, [OTHER, OTHER, RESULT], overrides);

describe("Reputation", () => {
  describe("faults", () => {
    it("are the refuted executor's and of who vouched for it", async () => {
      const n = await loadFixture(ready);
      const jobId = await refuted(n);
      await report(n, jobId);
      expect(await faults(n, jobId)).to.deep.equal([
        [n.compute.id, Fault.RefutedResult, 15n], [n.auditor.id, Fault.WrongVerdict, 12n],
      ]);
      expect(await n.reputation.pointsOf(n.compute.id)).to.equal(15n);
      expect(await n.reputation.pointsOf(n.north.id)).to.equal(0n);
      expect(await n.reputation.reported(jobId)).to.equal(true);
    });

    it("are of a dissenter whose dissent the council dismissed", async () => {
      const n = await loadFixture(disputable);
      const jobId = await judged(n, [RESULT, OTHER, RESULT]);
      await settle(n, jobId, true);
      await n.jobs.connect(n.north.node).openRelease(...given(n, jobId));
      await n.jobs.connect(n.north.node).recordRelease(jobId, digest("release"), 1);
      await report(n, jobId);
      expect(await faults(n, jobId)).to.deep.equal([[n.south.id, Fault.WrongVerdict, 12n]]);
    });

    it("are the executor's when the council refutes, and of who agreed or saw a third thing no more than that", async () => {
      const n = await loadFixture(disputable);
      const jobId = await judged(n, [RESULT, OTHER, THIRD]);
      await settle(n, jobId, false);
      await report(n, jobId);
      expect(await faults(n, jobId)).to.deep.equal([
        [n.compute.id, Fault.RefutedResult, 15n], [n.north.id, Fault.WrongVerdict, 12n],
      ]);
    });

    it("are nobody's when a dispute runs out: silence says not who was right", async () => {
      const n = await loadFixture(disputable);
      const jobId = await judged(n, [RESULT, RESULT, OTHER]);
      await passDeadline(n, jobId);
      await n.jobs.connect(n.auditor.node).expireJob(...given(n, jobId));
      expect(await stateOf(n, jobId)).to.equal(State.Refuted);
      await expect(report(n, jobId)).to.be.revertedWithCustomError(n.reputation, "ReputationNoFault").withArgs(jobId);
    });

    it("are of who committed and did not reveal", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Revealing");
      await reveal(n, jobId, n.north);
      await passDeadline(n, jobId);
      await n.jobs.connect(n.auditor.node).closeReveals(...given(n, jobId));
      expect(await stateOf(n, jobId)).to.equal(State.Expired);
      await report(n, jobId);
      expect(await faults(n, jobId)).to.deep.equal([
        [n.south.id, Fault.UnrevealedVerdict, 3n], [n.auditor.id, Fault.UnrevealedVerdict, 3n],
      ]);
    });

    it("are of who claimed and brought nothing, when the job expires and when another takes over", async () => {
      const n = await loadFixture(ready);
      await govern(n, n.participants, "setRoles", [n.south.id, 8 | 16]);
      const jobId = await jobIn(n, "Claimed");
      await passDeadline(n, jobId);
      await n.jobs.connect(n.south.node).claimJob(jobId);
      await time.increaseTo((await n.jobs.progress(jobId)).deadline + 100n);
      await n.jobs.connect(n.auditor.node).expireJob(...given(n, jobId));
      await report(n, jobId);
      expect(await faults(n, jobId)).to.deep.equal([
        [n.compute.id, Fault.LapsedClaim, 1n], [n.south.id, Fault.LapsedClaim, 1n],
      ]);
    });

    it("are not there when all went well, or a job was never claimed", async () => {
      const n = await loadFixture(ready);
      const idle = await jobIn(n, "Posted", { nonce: 7 });
      await passDeadline(n, idle);
      await n.jobs.connect(n.auditor.node).expireJob(...given(n, idle));
      for (const jobId of [idle, await jobIn(n, "Released")]) {
        await expect(report(n, jobId)).to.be.revertedWithCustomError(n.reputation, "ReputationNoFault").withArgs(jobId);
        expect(await n.reputation.reported(jobId)).to.equal(false);
      }
    });
  });

  describe("report", () => {
    it("counts a job once, whoever reports", async () => {
      const n = await loadFixture(ready);
      const jobId = await refuted(n);
      await report(n, jobId, n.university.account);
      await expect(report(n, jobId))
        .to.be.revertedWithCustomError(n.reputation, "ReputationAlreadyReported").withArgs(jobId);
      expect(await n.reputation.pointsOf(n.compute.id)).to.equal(15n);
    });

    it("waits for the end of the job", async () => {
      const n = await loadFixture(disputable);
      const jobId = await judged(n, [RESULT, RESULT, OTHER]);
      await expect(report(n, jobId)).to.be.revertedWithCustomError(n.reputation, "ReputationNotEnded").withArgs(jobId);
      await settle(n, jobId, true);
      await expect(report(n, jobId)).to.be.revertedWithCustomError(n.reputation, "ReputationNotEnded").withArgs(jobId);
    });

    it("takes nothing but the job's whole series", async () => {
      const n = await loadFixture(ready);
      const jobId = await refuted(n);
      const events = await series(n, jobId);
      const refused = async (shown, id = jobId) =>
        expect(n.reputation.connect(n.auditor.node).report(id, shown))
          .to.be.revertedWithCustomError(n.reputation, "ReputationSeriesMismatch").withArgs(id);
      for (const index of events.keys()) {
        await refused(events.filter((_, at) => at !== index));
        await refused(events.map((event, at) => (at === index ? { ...event, payload: `${event.payload}00` } : event)));
        await refused(events.map((event, at) => (at === index ? { ...event, topic: digest("topic") } : event)));
        if (index > 0) {
          const swapped = [...events];
          [swapped[index - 1], swapped[index]] = [events[index], events[index - 1]];
          await refused(swapped);
        }
      }
      await refused([...events, events.at(-1)]);
      await refused([], digest("nobody's job"));
      await refused(events, await refuted(n, { nonce: 8 }));
    });
  });

  describe("suspension", () => {
    it("comes with the fault that reaches the limit, and takes the member off the ledger at once", async () => {
      const n = await loadFixture(ready);
      const last = [await refuted(n), await refuted(n, { nonce: 2 })];
      await report(n, last[0]);
      expect(await n.participants.isActive(n.compute.id)).to.equal(true);
      await expect(report(n, last[1]))
        .to.emit(n.participants, "ParticipantStatusChanged").withArgs(n.compute.id, Status.Suspended);
      await expect(claim(n, last[0]))
        .to.be.revertedWithCustomError(n.participants, "ParticipantRegistryNotActive").withArgs(n.compute.id);
      expect(await n.participants.activeCountWithRole(8)).to.equal(0n);
    });

    it("leaves members that are suspended or removed already as they are, and counts on", async () => {
      const n = await loadFixture(ready);
      const jobs = [await refuted(n), await refuted(n, { nonce: 2 })];
      await govern(n, n.participants, "setStatus", [n.compute.id, Status.Removed]);
      for (const jobId of jobs) await report(n, jobId);
      expect((await n.participants.participant(n.compute.id)).status).to.equal(Status.Removed);
      expect(await n.reputation.pointsOf(n.compute.id)).to.equal(30n);
    });

    it("is undone by the council, which forgives", async () => {
      const n = await loadFixture(ready);
      for (const nonce of [1, 2]) await report(n, await refuted(n, { nonce }));
      await govern(n, n.participants, "setStatus", [n.compute.id, Status.Active]);
      await expect(govern(n, n.reputation, "forgive", [n.compute.id])).to.emit(n.reputation, "FaultsForgiven");
      expect(await n.reputation.pointsOf(n.compute.id)).to.equal(0n);
      expect((await n.reputation.seriesHead(n.compute.id))[0]).to.equal(3n);
    });
  });

  describe("rule", () => {
    it("lets points fade one by one, and keeps what is left of the time", async () => {
      const n = await loadFixture(ready);
      await report(n, await refuted(n));
      const since = await time.latest();
      const at = async (seconds) => {
        await time.increaseTo(since + seconds);
        return n.reputation.pointsOf(n.compute.id);
      };
      expect(await at(RULE.fadeSeconds - 1)).to.equal(15n);
      expect(await at(RULE.fadeSeconds)).to.equal(14n);
      expect(await at(RULE.fadeSeconds * 3 + 5)).to.equal(12n);
      await report(n, await refuted(n, { nonce: 2 }));
      expect(await n.reputation.pointsOf(n.compute.id)).to.equal(27n);
      expect(await at(RULE.fadeSeconds * 4)).to.equal(26n);
      expect(await at(RULE.fadeSeconds * 100)).to.equal(0n);
    });

    it("is the council's, and may make a fault cost nothing", async () => {
      const n = await loadFixture(ready);
      const free = { ...RULE, refutedResult: 0, wrongVerdict: 0 };
      await expect(govern(n, n.reputation, "setRule", [free])).to.emit(n.reputation, "RuleChanged");
      const jobId = await refuted(n);
      await report(n, jobId);
      expect((await faults(n, jobId)).map(([, , points]) => points)).to.deep.equal([0n, 0n]);
    });

    it("must have a limit and a time", async () => {
      const n = await loadFixture(ready);
      for (const broken of [{ ...RULE, limit: 0 }, { ...RULE, fadeSeconds: 0 }]) {
        await expectGovernedRevert(
          n, govern(n, n.reputation, "setRule", [broken]), n.reputation, "ReputationInvalidRule", [],
        );
        await expect(
          ethers.deployContract("Reputation", [n.manager.target, n.participants.target, n.jobs.target, broken]),
        ).to.be.revertedWithCustomError(n.reputation, "ReputationInvalidRule");
      }
    });
  });
});
