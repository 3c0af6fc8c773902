import { expect } from "chai";
import {
  Role, Status, ZERO, deployed, digest, ethers, expectGovernedRevert, govern, label, loadFixture, participantOf, setStatus,
} from "./network.js";

const newcomer = (n) => ({
  name: "newcomer", id: label("newcomer"), roles: Role.PARTNER, account: n.spare[0], node: n.spare[1],
});
const admit = (n, overrides) => govern(n, n.participants, "admit", [participantOf(newcomer(n), overrides)]);

describe("ParticipantRegistry", () => {
  describe("admit", () => {
    it("stores the record as active and emits it whole", async () => {
      const n = await loadFixture(deployed);
      const member = newcomer(n);
      await expect(admit(n, { status: Status.Removed }))
        .to.emit(n.participants, "ParticipantAdmitted")
        .withArgs(member.id, (p) => p.status === Status.Active && p.account === member.account.address);
      const stored = await n.participants.participant(member.id);
      expect(stored.status).to.equal(Status.Active);
      expect(stored.hpkeKey).to.equal(digest("hpke newcomer"));
      expect(await n.participants.organisationOf(member.account.address)).to.equal(member.id);
      expect(await n.participants.organisationOf(member.node.address)).to.equal(member.id);
      expect((await n.participants.organisations()).at(-1)).to.equal(member.id);
      expect(await n.participants.activeCount()).to.equal(6n);
      expect(await n.participants.activeCountWithRole(Role.PARTNER)).to.equal(2n);
    });

    const invalid = {
      "the id is zero": { id: ZERO },
      "the authority is zero": { account: ethers.ZeroAddress },
      "the node is zero": { nodeAccount: ethers.ZeroAddress },
      "the roles are empty": { roles: 0 },
      "a role is unknown": { roles: 64 },
      "the peer id is empty": { peerId: "0x" },
      "the peer id is longer than 64 bytes": { peerId: "0x" + "11".repeat(65) },
      "the endpoint is longer than 256 bytes": { endpoint: "x".repeat(257) },
    };
    for (const [why, overrides] of Object.entries(invalid)) {
      it(`reverts when ${why}`, async () => {
        const n = await loadFixture(deployed);
        const id = overrides.id ?? label("newcomer");
        await expectGovernedRevert(
          n, admit(n, overrides), n.participants, "ParticipantRegistryInvalidParticipant", [id],
        );
      });
    }

    it("reverts when the id is known", async () => {
      const n = await loadFixture(deployed);
      const promise = admit(n, { id: n.south.id });
      await expectGovernedRevert(n, promise, n.participants, "ParticipantRegistryAlreadyKnown", [n.south.id]);
    });

    it("reverts when both accounts are the same", async () => {
      const n = await loadFixture(deployed);
      const { address } = n.spare[0];
      const promise = admit(n, { nodeAccount: address });
      await expectGovernedRevert(n, promise, n.participants, "ParticipantRegistryAccountTaken", [address]);
    });

    it("reverts when an account serves another member, even a removed one", async () => {
      const n = await loadFixture(deployed);
      await setStatus(n, n.south, Status.Removed);
      const { address } = n.south.node;
      const promise = admit(n, { account: address });
      await expectGovernedRevert(n, promise, n.participants, "ParticipantRegistryAccountTaken", [address]);
    });

    it("reverts when the peer id is taken", async () => {
      const n = await loadFixture(deployed);
      const { peerId } = participantOf(n.south);
      const promise = admit(n, { peerId });
      await expectGovernedRevert(n, promise, n.participants, "ParticipantRegistryPeerTaken", [peerId]);
    });
  });

  describe("setStatus", () => {
    it("counts suspended members out and reinstated ones in", async () => {
      const n = await loadFixture(deployed);
      await expect(setStatus(n, n.south, Status.Suspended))
        .to.emit(n.participants, "ParticipantStatusChanged")
        .withArgs(n.south.id, Status.Suspended);
      expect(await n.participants.isActive(n.south.id)).to.equal(false);
      expect(await n.participants.hasRole(n.south.id, Role.VERIFIER)).to.equal(false);
      expect(await n.participants.activeCount()).to.equal(4n);
      expect(await n.participants.activeCountWithRole(Role.VERIFIER)).to.equal(2n);
      await setStatus(n, n.south, Status.Suspended);
      expect(await n.participants.activeCount()).to.equal(4n);
      await setStatus(n, n.south, Status.Active);
      await setStatus(n, n.south, Status.Active);
      expect(await n.participants.activeCount()).to.equal(5n);
      expect(await n.participants.activeCountWithRole(Role.VERIFIER)).to.equal(3n);
      expect(await n.participants.hasRole(n.south.id, Role.VERIFIER)).to.equal(true);
    });

    it("reverts for None", async () => {
      const n = await loadFixture(deployed);
      const promise = setStatus(n, n.south, Status.None);
      const error = "ParticipantRegistryInvalidParticipant";
      await expectGovernedRevert(n, promise, n.participants, error, [n.south.id]);
    });

    it("reverts for an unknown member", async () => {
      const n = await loadFixture(deployed);
      const promise = setStatus(n, newcomer(n), Status.Suspended);
      await expectGovernedRevert(n, promise, n.participants, "ParticipantRegistryUnknown", [label("newcomer")]);
    });

    it("reverts once a member was removed, for status and roles alike", async () => {
      const n = await loadFixture(deployed);
      await setStatus(n, n.south, Status.Removed);
      const back = setStatus(n, n.south, Status.Active);
      await expectGovernedRevert(n, back, n.participants, "ParticipantRegistryFinal", [n.south.id]);
      const roles = govern(n, n.participants, "setRoles", [n.south.id, Role.PARTNER]);
      await expectGovernedRevert(n, roles, n.participants, "ParticipantRegistryFinal", [n.south.id]);
    });
  });

  describe("setRoles", () => {
    it("replaces the roles and their counts", async () => {
      const n = await loadFixture(deployed);
      await expect(govern(n, n.participants, "setRoles", [n.south.id, Role.PARTNER | Role.VERIFIER]))
        .to.emit(n.participants, "ParticipantRolesChanged")
        .withArgs(n.south.id, Role.PARTNER | Role.VERIFIER);
      expect(await n.participants.activeCountWithRole(Role.STEWARD)).to.equal(1n);
      expect(await n.participants.activeCountWithRole(Role.PARTNER)).to.equal(2n);
      expect(await n.participants.activeCountWithRole(Role.VERIFIER)).to.equal(3n);
      expect(await n.participants.hasRole(n.south.id, Role.STEWARD)).to.equal(false);
    });

    it("does not count a suspended member in", async () => {
      const n = await loadFixture(deployed);
      await setStatus(n, n.south, Status.Suspended);
      await govern(n, n.participants, "setRoles", [n.south.id, Role.PARTNER]);
      expect(await n.participants.activeCountWithRole(Role.PARTNER)).to.equal(1n);
      await setStatus(n, n.south, Status.Active);
      expect(await n.participants.activeCountWithRole(Role.PARTNER)).to.equal(2n);
    });

    it("reverts for no role", async () => {
      const n = await loadFixture(deployed);
      const promise = govern(n, n.participants, "setRoles", [n.south.id, 0]);
      const error = "ParticipantRegistryInvalidParticipant";
      await expectGovernedRevert(n, promise, n.participants, error, [n.south.id]);
    });
  });

  describe("setEndpoint", () => {
    it("lets authority and node say where the node is", async () => {
      const n = await loadFixture(deployed);
      for (const signer of [n.south.account, n.south.node]) {
        const endpoint = `/dns4/${signer.address}/tcp/4001`;
        await expect(n.participants.connect(signer).setEndpoint(endpoint))
          .to.emit(n.participants, "ParticipantEndpointChanged")
          .withArgs(n.south.id, endpoint);
        expect((await n.participants.participant(n.south.id)).endpoint).to.equal(endpoint);
      }
    });

    it("reverts when the endpoint is longer than 256 bytes", async () => {
      const n = await loadFixture(deployed);
      await expect(n.participants.connect(n.south.node).setEndpoint("x".repeat(257)))
        .to.be.revertedWithCustomError(n.participants, "ParticipantRegistryInvalidParticipant")
        .withArgs(n.south.id);
    });
  });

  describe("requireAuthority and requireNode", () => {
    it("return the organisation", async () => {
      const n = await loadFixture(deployed);
      const { account, node, id } = n.south;
      expect(await n.participants.requireAuthority(account.address, Role.STEWARD)).to.equal(id);
      expect(await n.participants.requireAuthority(account.address, 0)).to.equal(id);
      const { number } = await n.participants.beside(id);
      expect(await n.participants.requireNode(node.address, Role.VERIFIER)).to.deep.equal([id, number]);
      expect(await n.participants.requireMember(node.address)).to.equal(id);
      expect(await n.participants.requireMember(account.address)).to.equal(id);
    });

    it("count members in order of admission, and who computes and verifies beside one", async () => {
      const n = await loadFixture(deployed);
      const beside = async (member) => [...(await n.participants.beside(member.id))].map(Number);
      expect(await beside(n.north)).to.deep.equal([1, 1, 2]);
      expect(await beside(n.university)).to.deep.equal([3, 1, 3]);
      expect(await beside(n.compute)).to.deep.equal([4, 0, 3]);
      await setStatus(n, n.south, Status.Suspended);
      expect(await beside(n.north)).to.deep.equal([1, 1, 1]);
      expect(await beside(n.south)).to.deep.equal([2, 1, 2]);
    });

    it("revert for strangers, the wrong capacity, a missing role and inactive members", async () => {
      const n = await loadFixture(deployed);
      const { account, node, id } = n.south;
      const { participants } = n;
      const refused = (promise, name, args) =>
        expect(promise).to.be.revertedWithCustomError(participants, name).withArgs(...args);
      const stranger = n.stranger.address;
      await refused(participants.requireAuthority(stranger, 0), "ParticipantRegistryNotMember", [stranger]);
      await refused(participants.requireNode(stranger, 0), "ParticipantRegistryNotMember", [stranger]);
      await refused(participants.requireMember(stranger), "ParticipantRegistryNotMember", [stranger]);
      await refused(
        participants.requireAuthority(node.address, 0), "ParticipantRegistryNotAuthority", [id, node.address],
      );
      await refused(
        participants.requireNode(account.address, 0), "ParticipantRegistryNotNode", [id, account.address],
      );
      await refused(
        participants.requireNode(node.address, Role.COMPUTE), "ParticipantRegistryMissingRole", [id, Role.COMPUTE],
      );
      await refused(
        participants.requireAuthority(account.address, Role.PARTNER),
        "ParticipantRegistryMissingRole",
        [id, Role.PARTNER],
      );
      await setStatus(n, n.south, Status.Suspended);
      await refused(participants.requireAuthority(account.address, 0), "ParticipantRegistryNotActive", [id]);
      await refused(participants.requireNode(node.address, 0), "ParticipantRegistryNotActive", [id]);
      await refused(participants.requireMember(node.address), "ParticipantRegistryNotActive", [id]);
    });
  });
});
