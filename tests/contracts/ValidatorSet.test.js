import { expect } from "chai";
import {
  CHAIN, ZERO, deployed, digest, encode, ethers, expectGovernedRevert, govern, loadFixture,
} from "./network.js";

const MAX_WEIGHT = 2n ** 64n - 1n;

/** A compressed key with this x coordinate, `sign` being that of y. */
const key = (x, sign = 0) => ethers.toBeHex((BigInt(0x80 | (sign * 0x20)) << 376n) | BigInt(x), 48);
const replace = (n, keys, weights) => govern(n, n.validators, "replace", [ethers.concat(keys), weights]);
const set = (count) => [[...Array(count).keys()].map((i) => key(i + 1)), Array(count).fill(20)];

describe("ValidatorSet", () => {
  it("is empty, and its series too, before the first change", async () => {
    const n = await loadFixture(deployed);
    expect(await n.validators.chain()).to.equal(CHAIN);
    expect(await n.validators.current()).to.deep.equal([0n, "0x", []]);
    expect(await n.validators.seriesHead(CHAIN)).to.deep.equal([0n, ZERO]);
  });

  it("is replaced whole by a vote, one version after the other, each hashed with all before it", async () => {
    const n = await loadFixture(deployed);
    const sets = [[[key(1), key(2, 1), key(2n ** 380n)], [10n, 20n, MAX_WEIGHT - 30n]], [[key(7)], [1n]]];
    let head = ZERO;
    for (const [index, [keys, weights]] of sets.entries()) {
      const version = BigInt(index + 1);
      const payload = encode(["bytes32", "bytes", "uint64[]"], [CHAIN, ethers.concat(keys), weights]);
      head = ethers.keccak256(
        encode(
          ["bytes32", "uint64", "bytes32", "bytes32"],
          [head, version, n.validators.interface.getEvent("ValidatorSetChanged").topicHash, ethers.keccak256(payload)],
        ),
      );
      await expect(replace(n, keys, weights))
        .to.emit(n.validators, "ValidatorSetChanged")
        .withArgs(CHAIN, ethers.concat(keys), weights, version, head);
      expect(await n.validators.current()).to.deep.equal([version, ethers.concat(keys), weights]);
      expect(await n.validators.seriesHead(CHAIN)).to.deep.equal([version, head]);
    }
    expect(await n.validators.seriesHead(digest("another chain"))).to.deep.equal([0n, ZERO]);
  });

  it("reverts for everybody but the council", async () => {
    const n = await loadFixture(deployed);
    for (const signer of [n.deployer, n.north.account, n.north.node, n.stranger]) {
      await expect(n.validators.connect(signer).replace(key(1), [1]))
        .to.be.revertedWithCustomError(n.validators, "AccessManagedUnauthorized")
        .withArgs(signer.address);
    }
  });

  it("takes 256 validators in one transaction of at most sixteen million gas", async () => {
    const n = await loadFixture(deployed);
    const sent = await replace(n, ...set(256));
    expect((await sent.wait()).gasUsed).to.be.lessThan(16_000_000n);
    expect((await n.validators.current()).weights.length).to.equal(256);
  });

  const misshapen = {
    "it is empty": [[], []],
    "it is above 256": set(257),
    "a weight is missing": [[key(1), key(2)], [1]],
    "a key is missing": [[key(1)], [1, 1]],
    "a key is a byte short": [[key(1), ethers.dataSlice(key(2), 1)], [1, 1]],
    "the weights overflow": [[key(1), key(2)], [MAX_WEIGHT, 1]],
  };
  for (const [why, [keys, weights]] of Object.entries(misshapen)) {
    it(`reverts when ${why}`, async () => {
      const n = await loadFixture(deployed);
      const given = [BigInt(ethers.dataLength(ethers.concat(keys))), weights.length];
      await expectGovernedRevert(n, replace(n, keys, weights), n.validators, "ValidatorSetInvalid", given);
    });
  }

  const invalid = {
    "a weight is zero": [[key(1), key(2), key(3)], [1, 0, 1]],
    "a key stands twice": [[key(1), key(1)], [1, 1]],
    "a key follows its own negation": [[key(1), key(1, 1)], [1, 1]],
    "the keys are out of order": [[key(2), key(1)], [1, 1]],
    "the keys are in the order of their bytes, flags included": [[key(2), key(1, 1)], [1, 1]],
    "keys that share their first 32 bytes are out of order": [[key(2n ** 200n + 2n), key(2n ** 200n + 1n)], [1, 1]],
    "a key is not compressed": [[key(1), ethers.toBeHex(2, 48)], [1, 1]],
    "a key is the point at infinity": [[key(1), ethers.toBeHex(0xc0n << 376n, 48)], [1, 1]],
  };
  for (const [why, [keys, weights]] of Object.entries(invalid)) {
    it(`reverts when ${why}`, async () => {
      const n = await loadFixture(deployed);
      const promise = replace(n, keys, weights);
      await expectGovernedRevert(n, promise, n.validators, "ValidatorSetInvalidValidator", [1]);
    });
  }

  it("reverts when the first x coordinate is zero", async () => {
    const n = await loadFixture(deployed);
    await expectGovernedRevert(n, replace(n, [key(0)], [1]), n.validators, "ValidatorSetInvalidValidator", [0]);
  });
});
