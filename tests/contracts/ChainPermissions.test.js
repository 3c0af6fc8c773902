import { expect } from "chai";
import {
  FEES, Status, deployOver, deployed, ethers, expectGovernedRevert, govern, label, loadFixture, networkHelpers,
  participantOf, setStatus, time,
} from "./network.js";

const DEPLOYER_LIST = "0x0200000000000000000000000000000000000000";
const MINTER = "0x0200000000000000000000000000000000000001";
const TRANSACTION_LIST = "0x0200000000000000000000000000000000000002";
const LISTS = [DEPLOYER_LIST, MINTER, TRANSACTION_LIST];
const NONE = 0n;
const ENABLED = 1n;
const ADMIN = 2n;
const MANAGER = 3n;

const at = (precompile, signer) => ethers.getContractAt("SubnetEvmMock", precompile, signer);
const roleOn = async (precompile, account) => (await at(precompile)).readAllowList(account.target ?? account.address);
const balanceOf = (account) => ethers.provider.getBalance(account.address);
const wallet = () => ethers.Wallet.createRandom();

/** What a genesis does: the precompiles in place, `admin` on every list. */
async function genesis(admin) {
  const mock = await ethers.deployContract("SubnetEvmMock");
  const code = await ethers.provider.getCode(mock.target);
  for (const precompile of LISTS) {
    await networkHelpers.setCode(precompile, code);
    await networkHelpers.setStorageAt(precompile, ethers.zeroPadValue(admin.address, 32), ADMIN);
  }
  await networkHelpers.setBalance(MINTER, 10n ** 24n);
}

const subnetEvmPermissions = (manager, fees = FEES) =>
  ethers.deployContract("SubnetEvmPermissions", [manager.target, fees.allowance, fees.period]);

/** A network whose chain has the lists, handed over as a deployment does. */
async function overLists() {
  const [deployer] = await ethers.getSigners();
  await genesis(deployer);
  const n = await deployOver(subnetEvmPermissions, {
    async wired(permissions) {
      await (await at(TRANSACTION_LIST, deployer)).setManager(permissions.target);
      await (await at(MINTER, deployer)).setEnabled(permissions.target);
    },
    async handOver(council) {
      for (const precompile of LISTS) {
        const list = await at(precompile, deployer);
        await list.setAdmin(council.target);
        await list.setNone(deployer.address);
      }
    },
  });
  return { ...n, lists: Object.fromEntries(await Promise.all(LISTS.map(async (p) => [p, await at(p)]))) };
}

const newcomer = () => ({ name: "newcomer", id: label("newcomer"), roles: 4, account: wallet(), node: wallet() });
const accountsOf = (member) => [member.account, member.node];

async function expectListEqualsActiveMembers(n, members) {
  for (const member of members) {
    const listed = (await n.participants.isActive(member.id)) ? ENABLED : NONE;
    for (const account of accountsOf(member)) {
      expect(await roleOn(TRANSACTION_LIST, account), member.name).to.equal(listed);
      expect(await n.permissions.isAllowed(account.address)).to.equal(listed === ENABLED);
      for (const list of [DEPLOYER_LIST, MINTER]) expect(await roleOn(list, account), member.name).to.equal(NONE);
    }
  }
}

describe("SubnetEvmPermissions", () => {
  it("puts both accounts of every founder on the transaction list and on no other", async () => {
    const n = await loadFixture(overLists);
    await expectListEqualsActiveMembers(n, Object.values(n.members));
  });

  it("puts an admitted member on the list and gives it fees in the transaction that admits it", async () => {
    const n = await loadFixture(overLists);
    const member = newcomer();
    const admitted = govern(n, n.participants, "admit", [participantOf(member)]);
    for (const account of accountsOf(member)) {
      await expect(admitted)
        .to.emit(n.lists[TRANSACTION_LIST], "RoleSet")
        .withArgs(ENABLED, account.address, n.permissions.target, NONE)
        .and.to.emit(n.permissions, "AccountFuelled")
        .withArgs(account.address, FEES.allowance);
      expect(await balanceOf(account)).to.equal(FEES.allowance);
    }
    await expectListEqualsActiveMembers(n, [...Object.values(n.members), member]);
  });

  it("takes a suspended member off, puts it back when reinstated, and takes it off for good when removed", async () => {
    const n = await loadFixture(overLists);
    for (const status of [Status.Suspended, Status.Active, Status.Suspended, Status.Removed]) {
      await setStatus(n, n.university, status);
      await expectListEqualsActiveMembers(n, Object.values(n.members));
    }
  });

  it("keeps the list equal to the active members over any order of votes", async () => {
    const n = await loadFixture(overLists);
    let seed = 7n;
    const draw = (count) => Number((seed = (seed * 6364136223846793005n + 1442695040888963407n) % 2n ** 64n) >> 33n) % count;
    const joined = [];
    for (let step = 0; step < 40; step += 1) {
      const others = [n.university, n.compute, ...joined];
      if (draw(4) === 0 && joined.length < 2) {
        const member = { ...newcomer(), name: `member ${step}`, id: label(`member ${step}`) };
        await govern(n, n.participants, "admit", [participantOf(member)]);
        joined.push(member);
      } else {
        const member = others[draw(others.length)];
        const status = [Status.Active, Status.Suspended, Status.Suspended, Status.Removed][draw(4)];
        if ((await n.participants.participant(member.id)).status === Status.Removed) continue;
        await setStatus(n, member, status);
      }
      await expectListEqualsActiveMembers(n, [...Object.values(n.members), ...joined]);
    }
    expect(joined.length).to.equal(2);
  }).timeout(120_000);

  it("leaves neither deployer nor member a role on any list but the transaction list; the council administers all", async () => {
    const n = await loadFixture(overLists);
    for (const precompile of LISTS) {
      expect(await roleOn(precompile, n.council)).to.equal(ADMIN);
      expect(await roleOn(precompile, n.deployer)).to.equal(NONE);
    }
    expect(await roleOn(TRANSACTION_LIST, n.permissions)).to.equal(MANAGER);
    expect(await roleOn(MINTER, n.permissions)).to.equal(ENABLED);
    expect(await roleOn(DEPLOYER_LIST, n.permissions)).to.equal(NONE);
  });

  it("lets nobody change a list, or mint, but the council by a vote", async () => {
    const n = await loadFixture(overLists);
    for (const signer of [n.deployer, n.stranger, n.north.account, n.north.node]) {
      for (const precompile of LISTS) {
        const list = await at(precompile, signer);
        for (const name of ["setAdmin", "setManager", "setEnabled", "setNone"]) {
          await expect(list[name](n.stranger.address, { gasLimit: 200_000 })).to.revert(ethers);
        }
        await expect(list.mintNativeCoin(signer.address, 1, { gasLimit: 200_000 })).to.revert(ethers);
      }
      await expect(n.permissions.connect(signer).allow(n.stranger.address))
        .to.be.revertedWithCustomError(n.permissions, "AccessManagedUnauthorized");
      await expect(n.permissions.connect(signer).revoke(n.north.account.address))
        .to.be.revertedWithCustomError(n.permissions, "AccessManagedUnauthorized");
      await expect(n.permissions.connect(signer).setFees(1, 1))
        .to.be.revertedWithCustomError(n.permissions, "AccessManagedUnauthorized");
    }
    await govern(n, n.lists[DEPLOYER_LIST], "setEnabled", [n.north.account.address]);
    expect(await roleOn(DEPLOYER_LIST, n.north.account)).to.equal(ENABLED);
    await govern(n, n.lists[MINTER], "mintNativeCoin", [n.stranger.address, 5]);
  });

  it("reserves allow and revoke to the registry, the council included", async () => {
    const n = await loadFixture(overLists);
    for (const name of ["allow", "revoke"]) {
      const promise = govern(n, n.permissions, name, [n.stranger.address]);
      await expectGovernedRevert(n, promise, n.permissions, "AccessManagedUnauthorized", [n.council.target]);
    }
  });

  it("leaves the member as it was when the list cannot be changed", async () => {
    const n = await loadFixture(overLists);
    const { address } = n.university.account;
    await govern(n, n.lists[TRANSACTION_LIST], "setAdmin", [address]);
    const promise = setStatus(n, n.university, Status.Removed);
    await expectGovernedRevert(n, promise, n.permissions, "ChainPermissionsNotManaged", [address, ADMIN]);
    expect(await n.participants.isActive(n.university.id)).to.equal(true);
    await govern(n, n.lists[TRANSACTION_LIST], "setEnabled", [address]);
    await setStatus(n, n.university, Status.Removed);
    expect(await roleOn(TRANSACTION_LIST, n.university.account)).to.equal(NONE);
  });

  it("admits nobody when it has lost its place on the list", async () => {
    const n = await loadFixture(overLists);
    await govern(n, n.lists[TRANSACTION_LIST], "setNone", [n.permissions.target]);
    const member = newcomer();
    await expect(govern(n, n.participants, "admit", [participantOf(member)]))
      .to.be.revertedWithCustomError(n.council, "MemberCouncilCallFailed");
    expect(await n.participants.isActive(member.id)).to.equal(false);
  });

  it("is not deployed on a chain that lacks a precompile", async () => {
    const manager = await ethers.deployContract("AccessManager", [(await ethers.getSigners())[0].address]);
    const { interface: abi } = await ethers.getContractFactory("SubnetEvmPermissions");
    for (const missing of [MINTER, TRANSACTION_LIST]) {
      await genesis((await ethers.getSigners())[0]);
      await networkHelpers.setCode(missing, "0x");
      await expect(subnetEvmPermissions(manager))
        .to.be.revertedWithCustomError({ interface: abi }, "ChainPermissionsMissing")
        .withArgs(missing);
    }
  });

  it("does not take the silence of something else at the list's address for consent", async () => {
    const n = await loadFixture(overLists);
    for (const [answer, act] of [[NONE, "admit"], [ENABLED, "remove"]]) {
      const deaf = await ethers.deployContract("DeafList", [answer]);
      await networkHelpers.setCode(TRANSACTION_LIST, await ethers.provider.getCode(deaf.target));
      const member = newcomer();
      const promise = act === "admit"
        ? govern(n, n.participants, "admit", [participantOf(member)])
        : setStatus(n, n.university, Status.Removed);
      const { address } = act === "admit" ? member.account : n.university.account;
      await expectGovernedRevert(n, promise, n.permissions, "ChainPermissionsNotSet", [address]);
    }
    await networkHelpers.setCode(TRANSACTION_LIST, "0x");
    await expect(setStatus(n, n.university, Status.Removed))
      .to.be.revertedWithCustomError(n.council, "MemberCouncilCallFailed").withArgs((id) => id > 0n, "0x");
  });

  describe("refuel", () => {
    const drain = (account) => networkHelpers.setBalance(account.address, 0n);

    it("fills a member that ran dry, whoever calls, once per period and account", async () => {
      const n = await loadFixture(overLists);
      const { account, node } = n.university;
      const next = (BigInt(await time.latest()) / FEES.period + 1n) * FEES.period;
      await time.setNextBlockTimestamp(next);
      await drain(account);
      await expect(n.permissions.connect(n.south.node).refuel(account.address))
        .to.emit(n.permissions, "AccountFuelled")
        .withArgs(account.address, FEES.allowance);
      await drain(account);
      await time.setNextBlockTimestamp(next + FEES.period - 1n);
      await expect(n.permissions.connect(n.south.node).refuel(account.address)).not.to.emit(n.permissions, "AccountFuelled");
      await drain(node);
      await time.setNextBlockTimestamp(next + FEES.period);
      for (const dry of [account, node]) {
        await n.permissions.connect(n.south.node).refuel(dry.address);
        expect(await balanceOf(dry)).to.equal(FEES.allowance);
      }
    });

    it("gives what is missing only, so that a call by somebody else costs the member nothing", async () => {
      const n = await loadFixture(overLists);
      const { account } = n.university;
      const next = (BigInt(await time.latest()) / FEES.period + 1n) * FEES.period;
      await time.setNextBlockTimestamp(next);
      await networkHelpers.setBalance(account.address, FEES.allowance - 1n);
      const refuel = () => n.permissions.connect(n.south.node).refuel(account.address);
      await expect(refuel()).to.emit(n.permissions, "AccountFuelled").withArgs(account.address, 1n);
      await expect(refuel()).not.to.emit(n.permissions, "AccountFuelled");
      await drain(account);
      await expect(refuel()).to.emit(n.permissions, "AccountFuelled").withArgs(account.address, FEES.allowance - 1n);
    });

    it("gives nothing to an account that is not on the list", async () => {
      const n = await loadFixture(overLists);
      await setStatus(n, n.university, Status.Suspended);
      for (const { address } of [n.stranger, n.university.account, n.university.node]) {
        await expect(n.permissions.connect(n.north.account).refuel(address))
          .to.be.revertedWithCustomError(n.permissions, "ChainPermissionsNotAllowed")
          .withArgs(address);
      }
    });

    it("follows what the members voted, even when it is less than was given already", async () => {
      const n = await loadFixture(overLists);
      await expect(govern(n, n.permissions, "setFees", [7, 100])).to.emit(n.permissions, "FeesChanged").withArgs(7, 100);
      expect(await n.permissions.fees()).to.deep.equal([7n, 100n]);
      const { node } = n.university;
      for (const allowance of [7n, 3n]) {
        await drain(node);
        await time.setNextBlockTimestamp((BigInt(await time.latest()) / 100n + 1n) * 100n);
        await n.permissions.connect(n.south.account).refuel(node.address);
        expect(await balanceOf(node)).to.equal(allowance);
        await govern(n, n.permissions, "setFees", [3, 100]);
      }
      for (const fees of [[0, 1], [1, 0]]) {
        await expectGovernedRevert(n, govern(n, n.permissions, "setFees", fees), n.permissions, "ChainPermissionsInvalidFees", []);
      }
    });
  });
});

describe("OpenPermissions", () => {
  it("refuses nobody and gives nothing", async () => {
    const n = await loadFixture(deployed);
    const { address } = n.stranger;
    expect(await n.permissions.isAllowed(address)).to.equal(true);
    expect(await n.permissions.fees()).to.deep.equal([0n, 0n]);
    for (const name of ["allow", "revoke", "refuel"]) expect(await n.permissions[name](address)).to.deep.equal([]);
  });

  it("has every function of the other implementation but its constructor's and the manager's", async () => {
    const names = (contract) => contract.interface.fragments.filter((f) => f.type === "function").map((f) => f.name);
    const open = names(await ethers.getContractFactory("OpenPermissions"));
    const listed = names(await ethers.getContractFactory("SubnetEvmPermissions"));
    const managed = ["authority", "isConsumingScheduledOp", "setAuthority"];
    expect(listed.filter((name) => !managed.includes(name)).sort()).to.deep.equal(open.sort());
  });
});
