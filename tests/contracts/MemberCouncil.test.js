import { expect } from "chai";
import {
  Proposal, QUORUM_BPS, Status, VOTING_PERIOD, deployed, ethers, govern, label, loadFixture, setStatus, time,
} from "./network.js";

async function proposed(n, proposer = n.north, contract = n.jobs, name = "setQuorum", args = [3]) {
  const data = contract.interface.encodeFunctionData(name, args);
  await n.council.connect(proposer.account).propose(contract.target, data);
  return n.council.proposalCount();
}

const vote = (n, member, id, support = true) => n.council.connect(member.account).vote(id, support);
const execute = (n, id, member = n.north) => n.council.connect(member.account).execute(id);

describe("MemberCouncil", () => {
  it("refuses a quorum outside a majority and a period of none or of more than a year at deployment", async () => {
    const n = await loadFixture(deployed);
    for (const [period, bps] of [[0, 5000], [365 * 86400 + 1, 5000], [1, 4999], [1, 10000]]) {
      await expect(ethers.deployContract("MemberCouncil", [n.participants.target, period, bps]))
        .to.be.revertedWithCustomError(n.council, "MemberCouncilInvalidParameters")
        .withArgs(period, bps);
    }
  });

  describe("propose", () => {
    it("opens a vote in which the proposer's own support counts", async () => {
      const n = await loadFixture(deployed);
      const data = n.jobs.interface.encodeFunctionData("setQuorum", [3]);
      const now = (await time.latest()) + 10;
      await time.setNextBlockTimestamp(now);
      await expect(n.council.connect(n.north.account).propose(n.jobs.target, data))
        .to.emit(n.council, "ProposalMade")
        .withArgs(1, n.north.id, n.jobs.target, data, now + VOTING_PERIOD)
        .and.to.emit(n.council, "VoteCast")
        .withArgs(1, n.north.id, true);
      expect(await n.council.proposalStatus(1)).to.equal(Proposal.Open);
      expect(await n.council.tally(1)).to.deep.equal([1n, 3n]);
      expect(await n.council.proposalStatus(2)).to.equal(Proposal.None);
    });
  });

  describe("vote", () => {
    it("reverts on a second vote, the proposer's included", async () => {
      const n = await loadFixture(deployed);
      const id = await proposed(n);
      await vote(n, n.south, id, false);
      for (const member of [n.north, n.south]) {
        await expect(vote(n, member, id))
          .to.be.revertedWithCustomError(n.council, "MemberCouncilAlreadyVoted")
          .withArgs(id, member.id);
      }
      expect(await n.council.tally(id)).to.deep.equal([1n, 3n]);
    });

    it("is open until the second before the deadline and closed from the deadline on", async () => {
      const n = await loadFixture(deployed);
      const id = await proposed(n);
      const deadline = (await time.latest()) + VOTING_PERIOD;
      await time.setNextBlockTimestamp(deadline - 1);
      await vote(n, n.south, id);
      await time.setNextBlockTimestamp(deadline);
      await expect(vote(n, n.auditor, id))
        .to.be.revertedWithCustomError(n.council, "MemberCouncilNotOpen")
        .withArgs(id);
      await time.increaseTo(deadline);
      expect(await n.council.proposalStatus(id)).to.equal(Proposal.Expired);
      await expect(execute(n, id)).to.be.revertedWithCustomError(n.council, "MemberCouncilNotOpen").withArgs(id);
    });

    it("reverts for a proposal that nobody made", async () => {
      const n = await loadFixture(deployed);
      await expect(vote(n, n.south, 7))
        .to.be.revertedWithCustomError(n.council, "MemberCouncilUnknownProposal")
        .withArgs(7);
    });
  });

  describe("execute", () => {
    it("makes the call once support exceeds the quorum, and only once", async () => {
      const n = await loadFixture(deployed);
      const id = await proposed(n);
      await vote(n, n.south, id);
      await expect(execute(n, id))
        .to.be.revertedWithCustomError(n.council, "MemberCouncilQuorumNotReached")
        .withArgs(id, 2, 3);
      await vote(n, n.auditor, id);
      await expect(execute(n, id)).to.emit(n.council, "ProposalExecuted").withArgs(id);
      expect(await n.jobs.quorum()).to.equal(3n);
      expect(await n.council.proposalStatus(id)).to.equal(Proposal.Executed);
      await expect(execute(n, id)).to.be.revertedWithCustomError(n.council, "MemberCouncilNotOpen").withArgs(id);
      await expect(vote(n, n.compute, id)).to.be.revertedWithCustomError(n.council, "MemberCouncilNotOpen");
    });

    it("does not count votes against", async () => {
      const n = await loadFixture(deployed);
      const id = await proposed(n);
      for (const member of [n.south, n.auditor, n.compute, n.university]) await vote(n, member, id, false);
      await expect(execute(n, id))
        .to.be.revertedWithCustomError(n.council, "MemberCouncilQuorumNotReached")
        .withArgs(id, 1, 3);
    });

    it("does not count the vote of a member suspended since, and needs fewer for it", async () => {
      const n = await loadFixture(deployed);
      const id = await proposed(n);
      await vote(n, n.south, id);
      await vote(n, n.auditor, id);
      expect(await n.council.tally(id)).to.deep.equal([3n, 3n]);
      await setStatus(n, n.south, Status.Suspended);
      expect(await n.council.tally(id)).to.deep.equal([2n, 3n]);
      await expect(execute(n, id)).to.be.revertedWithCustomError(n.council, "MemberCouncilQuorumNotReached");
      await setStatus(n, n.compute, Status.Suspended);
      expect(await n.council.tally(id)).to.deep.equal([2n, 2n]);
      await execute(n, id);
      expect(await n.jobs.quorum()).to.equal(3n);
    });

    it("measures the quorum against members admitted since", async () => {
      const n = await loadFixture(deployed);
      const id = await proposed(n);
      await vote(n, n.south, id);
      await vote(n, n.auditor, id);
      const joined = {
        id: label("newcomer"), account: n.spare[0].address, nodeAccount: n.spare[1].address, roles: 4, status: 0,
        hpkeKey: ethers.ZeroHash, peerId: "0x01", endpoint: "",
      };
      await govern(n, n.participants, "admit", [joined]);
      expect(await n.council.tally(id)).to.deep.equal([3n, 4n]);
    });

    it("reverts with the reason when the call fails, and leaves the proposal open", async () => {
      const n = await loadFixture(deployed);
      const id = await proposed(n, n.north, n.jobs, "setQuorum", [0]);
      await vote(n, n.south, id);
      await vote(n, n.auditor, id);
      const reason = n.jobs.interface.encodeErrorResult("JobLedgerInvalidParameters", []);
      await expect(execute(n, id))
        .to.be.revertedWithCustomError(n.council, "MemberCouncilCallFailed")
        .withArgs(id, reason);
      expect(await n.council.proposalStatus(id)).to.equal(Proposal.Open);
    });

    it("reverts when the target holds no code", async () => {
      const n = await loadFixture(deployed);
      await n.council.connect(n.north.account).propose(n.stranger.address, "0x12345678");
      await vote(n, n.south, 1);
      await vote(n, n.auditor, 1);
      await expect(execute(n, 1))
        .to.be.revertedWithCustomError(n.council, "MemberCouncilCallFailed")
        .withArgs(1, "0x");
    });
  });

  describe("setParameters", () => {
    it("reverts for everybody but the council itself", async () => {
      const n = await loadFixture(deployed);
      for (const signer of [n.deployer, n.north.account]) {
        await expect(n.council.connect(signer).setParameters(1, 5000))
          .to.be.revertedWithCustomError(n.council, "MemberCouncilOnlyItself")
          .withArgs(signer.address);
      }
      expect(await n.council.votingPeriod()).to.equal(VOTING_PERIOD);
      expect(await n.council.quorumBps()).to.equal(QUORUM_BPS);
    });

    it("changes both by a vote, from the next second on", async () => {
      const n = await loadFixture(deployed);
      await expect(govern(n, n.council, "setParameters", [60, 9999]))
        .to.emit(n.council, "CouncilParametersChanged")
        .withArgs(60, 9999);
      const id = await proposed(n);
      expect(await n.council.tally(id)).to.deep.equal([1n, 5n]);
      await time.increase(60);
      expect(await n.council.proposalStatus(id)).to.equal(Proposal.Expired);
    });
  });

  it("holds the AccessManager's administration alone", async () => {
    const n = await loadFixture(deployed);
    const everybody = [...Object.values(n.members).flatMap((m) => [m.account, m.node]), n.deployer, n.stranger];
    for (const signer of everybody) expect((await n.manager.hasRole(0, signer.address))[0]).to.equal(false);
    expect((await n.manager.hasRole(0, n.council.target))[0]).to.equal(true);
    expect((await n.manager.hasRole(1, n.participants.target))[0]).to.equal(true);
  });
});
