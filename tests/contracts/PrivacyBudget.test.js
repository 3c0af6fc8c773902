import { expect } from "chai";
import { Kind, State, digest, ethers, grant, jobIn, loadFixture, post, ready, stateOf } from "./network.js";

const UNKNOWN = digest("no such bundle");
// The contract with an account in the job ledger's place.
const asJobLedger = async () => {
  const n = await ready();
  const budgets = await ethers.deployContract("PrivacyBudget", [
    n.participants.target, n.lineage.target, n.stranger.address,
  ]);
  await budgets.connect(n.north.account).setBudget(n.bundle, 10_000);
  return { ...n, budgets, ledger: budgets.connect(n.stranger) };
};
const accountOf = async (n) => [...(await n.budgets.account(n.bundle))].map(Number);

describe("PrivacyBudget", () => {
  describe("setBudget", () => {
    it("raises and lowers the total, but not below what is reserved and spent", async () => {
      const n = await loadFixture(asJobLedger);
      const budgets = n.budgets.connect(n.north.account);
      await n.ledger.reserve(n.bundle, 1_500);
      await n.ledger.settle(n.bundle, 500);
      await expect(budgets.setBudget(n.bundle, 1_499))
        .to.be.revertedWithCustomError(n.budgets, "PrivacyBudgetBelowCommitted")
        .withArgs(n.bundle, 1_499, 1_500);
      await expect(budgets.setBudget(n.bundle, 1_500)).to.emit(n.budgets, "BudgetSet").withArgs(n.bundle, 1_500);
      expect(await accountOf(n)).to.deep.equal([1_500, 1_000, 500]);
      expect(await n.budgets.available(n.bundle)).to.equal(0n);
    });

    it("reverts for another steward, an unknown artifact, and a result", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Verified");
      for (const id of [n.bundle, UNKNOWN, await n.lineage.derivedIdOf(jobId, Kind.Result)]) {
        await expect(n.budgets.connect(n.south.account).setBudget(id, 1))
          .to.be.revertedWithCustomError(n.budgets, "PrivacyBudgetNotSteward")
          .withArgs(id, n.south.account.address);
      }
    });
  });

  describe("reserve, settle and refund", () => {
    it("set rho aside, spend it for good, or make it available again", async () => {
      const n = await loadFixture(asJobLedger);
      await n.ledger.reserve(n.bundle, 1_000);
      expect(await accountOf(n)).to.deep.equal([10_000, 1_000, 0]);
      await n.ledger.settle(n.bundle, 600);
      expect(await accountOf(n)).to.deep.equal([10_000, 400, 600]);
      await n.ledger.refund(n.bundle, 400);
      expect(await accountOf(n)).to.deep.equal([10_000, 0, 600]);
    });

    it("reserve nothing beyond the total, and cannot be overflowed", async () => {
      const n = await loadFixture(asJobLedger);
      const most = 2n ** 64n - 1n;
      const exceeded = (rho, left) =>
        expect(n.ledger.reserve(n.bundle, rho))
          .to.be.revertedWithCustomError(n.budgets, "PrivacyBudgetExceeded")
          .withArgs(n.bundle, rho, left);
      await exceeded(10_001, 10_000);
      await n.budgets.connect(n.north.account).setBudget(n.bundle, most);
      await n.ledger.reserve(n.bundle, most);
      await exceeded(1, 0);
      await exceeded(most, 0);
    });

    it("settle and refund no more than is reserved", async () => {
      const n = await loadFixture(asJobLedger);
      await n.ledger.reserve(n.bundle, 10);
      for (const end of ["settle", "refund"]) {
        await expect(n.ledger[end](n.bundle, 11))
          .to.be.revertedWithCustomError(n.budgets, "PrivacyBudgetNotReserved")
          .withArgs(n.bundle, 11);
      }
    });
  });

  it("stops jobs under several grants together at the bundle's limit, whatever each grant leaves them", async () => {
    const n = await loadFixture(ready);
    const wide = await grant(n, { rhoMicro: 100_000 });
    expect(await stateOf(n, await post(n, { nonce: 1, rhoMicro: 3_000 }))).to.equal(State.Posted);
    expect(await stateOf(n, await post(n, { nonce: 2, rhoMicro: 7_001, grantId: wide }))).to.equal(State.Denied);
    expect(await stateOf(n, await post(n, { nonce: 3, rhoMicro: 7_000, grantId: wide }))).to.equal(State.Posted);
    expect(await accountOf(n)).to.deep.equal([10_000, 10_000, 0]);
  });
});
