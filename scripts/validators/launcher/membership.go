package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ava-labs/avalanchego/config"
	"github.com/ava-labs/avalanchego/ids"
	"github.com/ava-labs/avalanchego/tests/fixture/tmpnet"
	"github.com/ava-labs/avalanchego/utils/constants"
	"github.com/ava-labs/avalanchego/utils/rpc"
	"github.com/ava-labs/avalanchego/utils/set"
	"github.com/ava-labs/avalanchego/utils/units"
	"github.com/ava-labs/avalanchego/vms/platformvm"
	"github.com/ava-labs/avalanchego/vms/platformvm/reward"
	"github.com/ava-labs/avalanchego/vms/platformvm/txs"
	"github.com/ava-labs/avalanchego/vms/secp256k1fx"
	pwallet "github.com/ava-labs/avalanchego/wallet/chain/p/wallet"
	"github.com/ava-labs/avalanchego/wallet/subnet/primary/common"
)

const (
	chainWeight = units.Schmeckle // what the fixture gives each founder on the chain
	// Stakes of identities that have left vote no more, but count until their terms end. The platform chain
	// stops when a fifth of its stake is silent, so a newcomer stakes enough to keep them at a tenth.
	departedShare = 10
	// The platform refuses a term longer than its maximum, counted from its own clock.
	termMargin        = time.Hour
	membershipTimeout = 2 * time.Minute
)

// add starts one more validator, lets it follow the chain, and then gives it a vote.
func (c *consortium) add(ctx context.Context) error {
	number := 1
	for _, node := range c.network.Nodes {
		number = max(number, numberOf(node)+1)
	}
	node, err := c.newNode(number)
	if err != nil {
		return err
	}
	runtime := c.runtimeConfig(defaultBuild)
	node.RuntimeConfig = &runtime
	node.Flags[config.TrackSubnetsKey] = c.subnet().SubnetID.String()
	c.network.Nodes = append(c.network.Nodes, node)
	if err := c.startAll(ctx, node); err != nil {
		return err
	}
	if err := c.stake(ctx, node); err != nil {
		return err
	}
	return c.admit(ctx, node)
}

// remove takes a validator's vote away and stops it. Its data stays on its disk, under its node id.
func (c *consortium) remove(ctx context.Context, node *tmpnet.Node) error {
	if err := c.dismiss(ctx, node.NodeID); err != nil {
		return err
	}
	if err := c.stop(node, false); err != nil {
		return err
	}
	c.network.Nodes = slices.DeleteFunc(c.network.Nodes, func(other *tmpnet.Node) bool { return other == node })
	return os.Rename(node.DataDir, filepath.Join(c.directory, "removed-"+node.NodeID.String()))
}

// membership is who votes on the members' chain and who has a stake, as the platform chain has it.
type membership struct{ votes, stakes set.Set[ids.NodeID] }

// rotationStep is a part of a rotation that may be left when an earlier attempt at it was interrupted.
type rotationStep int

const (
	makeKeys rotationStep = iota
	dismissDeparted
	placeStake
	startAnew
	giveVote
)

// rotationSteps are what is left to do until a validator has a new identity with a vote.
//
// An identity on the disk that has no vote was made by an attempt that did not end: it is taken up, since each new one costs
// a stake. The keys come first, so that whatever follows is about an identity that is on the disk.
func rotationSteps(identity ids.NodeID, validators []ids.NodeID, now membership) []rotationStep {
	if now.votes.Contains(identity) {
		return []rotationStep{makeKeys, dismissDeparted, placeStake, startAnew, giveVote}
	}
	var left []rotationStep
	if len(departed(validators, now.votes)) > 0 {
		left = append(left, dismissDeparted)
	}
	if !now.stakes.Contains(identity) {
		left = append(left, placeStake)
	}
	return append(left, startAnew, giveVote)
}

// departed are the identities with a vote that no validator has any more.
func departed(validators []ids.NodeID, votes set.Set[ids.NodeID]) []ids.NodeID {
	gone := set.Of(votes.List()...)
	gone.Remove(validators...)
	return gone.List()
}

// rotate gives a validator new staking and signing keys, so a new identity, on its old data. The old identity
// loses its vote first and the new one gets its own once it follows the chain: four of four vote in between.
// The stake is placed before the stop, while the platform chain still has every vote.
//
// Repeated after an error or a kill it does what is left; it also ends an `add` that was interrupted.
func (c *consortium) rotate(ctx context.Context, node *tmpnet.Node) error {
	now, err := c.membership(ctx)
	if err != nil {
		return err
	}
	for _, step := range rotationSteps(node.NodeID, c.identities(), now) {
		if err := c.rotationStep(ctx, node, step, now); err != nil {
			return err
		}
	}
	return nil
}

func (c *consortium) rotationStep(ctx context.Context, node *tmpnet.Node, step rotationStep, now membership) error {
	switch step {
	case makeKeys:
		return newIdentity(node)
	case dismissDeparted:
		for _, nodeID := range departed(c.identities(), now.votes) {
			if err := c.dismiss(ctx, nodeID); err != nil {
				return err
			}
		}
		return nil
	case placeStake:
		return c.stake(ctx, node)
	case startAnew:
		if err := c.stop(node, false); err != nil {
			return err
		}
		return c.startAll(ctx, node)
	default:
		return c.admit(ctx, node)
	}
}

// newIdentity makes new keys for a node and writes them down.
func newIdentity(node *tmpnet.Node) error {
	old := node.NodeID
	for _, key := range []string{
		config.StakingTLSKeyContentKey, config.StakingCertContentKey, config.StakingSignerKeyContentKey,
	} {
		delete(node.Flags, key)
	}
	if err := node.EnsureKeys(); err != nil {
		return err
	}
	say("validator %d: %s becomes %s", numberOf(node), old, node.NodeID)
	return node.Write()
}

// identities are the validators' node ids.
func (c *consortium) identities() []ids.NodeID {
	return tmpnet.NodesToIDs(c.network.Nodes...)
}

// membership asks the platform chain; the network's file may lag behind it.
func (c *consortium) membership(ctx context.Context) (membership, error) {
	var now membership
	err := c.onPlatform(ctx, func(ctx context.Context, client *platformvm.Client, _ pwallet.Wallet) error {
		var err error
		if now.votes, err = currentValidators(ctx, client, c.subnet().SubnetID); err != nil {
			return err
		}
		now.stakes, err = currentValidators(ctx, client, constants.PrimaryNetworkID)
		return err
	})
	return now, err
}

func currentValidators(
	ctx context.Context, client *platformvm.Client, subnetID ids.ID,
) (set.Set[ids.NodeID], error) {
	current, err := client.GetCurrentValidators(ctx, subnetID, nil)
	if err != nil {
		return nil, err
	}
	found := set.Set[ids.NodeID]{}
	for _, validator := range current {
		found.Add(validator.NodeID)
	}
	return found, nil
}

// rebuild wipes a validator's data but its keys, and has it fetch everything from its peers.
func (c *consortium) rebuild(ctx context.Context, node *tmpnet.Node) error {
	if err := c.stop(node, false); err != nil {
		return err
	}
	for _, name := range []string{"db", "chainData"} {
		if err := os.RemoveAll(filepath.Join(node.DataDir, name)); err != nil {
			return err
		}
	}
	return c.startAll(ctx, node)
}

// upgrade restarts a validator on the programs of another build.
func (c *consortium) upgrade(ctx context.Context, node *tmpnet.Node, name string) error {
	runtime := c.runtimeConfig(name)
	for _, program := range []string{
		runtime.Process.AvalancheGoPath, filepath.Join(runtime.Process.PluginDir, vmName),
	} {
		if _, err := os.Stat(program); err != nil {
			return fmt.Errorf("there is no such build: %w", err)
		}
	}
	if err := c.stop(node, false); err != nil {
		return err
	}
	node.RuntimeConfig = &runtime
	return c.startAll(ctx, node)
}

// upgradeState hands an upgrade file to the validators, one restart at a time. The file lists every upgrade
// so far: the engine refuses one that drops or changes what was already activated.
func (c *consortium) upgradeState(ctx context.Context, file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !json.Valid(content) {
		return fmt.Errorf("%s is no JSON", file)
	}
	if err := os.WriteFile(c.upgradePath(), content, 0o600); err != nil {
		return err
	}
	for _, node := range c.network.Nodes {
		say("restarting validator %d", numberOf(node))
		if err := c.stop(node, false); err != nil {
			return err
		}
		if err := c.startAll(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// stake makes a node a validator of the platform chain, which every voter of the members' chain must be.
func (c *consortium) stake(ctx context.Context, node *tmpnet.Node) error {
	return c.onPlatform(ctx, func(ctx context.Context, client *platformvm.Client, wallet pwallet.Wallet) error {
		current, err := client.GetCurrentValidators(ctx, constants.PrimaryNetworkID, nil)
		if err != nil {
			return err
		}
		term, err := newTerm(ctx, client, node.NodeID, c.newStake(current))
		if err != nil {
			return err
		}
		proof, err := node.GetProofOfPossession()
		if err != nil {
			return err
		}
		owner := &secp256k1fx.OutputOwners{Threshold: 1, Addrs: []ids.ShortID{c.subnet().OwningKey.Address()}}
		_, err = wallet.IssueAddPermissionlessValidatorTx(
			&txs.SubnetValidator{Validator: *term, Subnet: constants.PrimaryNetworkID},
			proof, wallet.Builder().Context().AVAXAssetID, owner, owner, reward.PercentDenominator,
			common.WithContext(ctx),
		)
		return err
	})
}

// newStake is what the next identity stakes: a founder's stake, or more where identities have left.
func (c *consortium) newStake(current []platformvm.ClientPermissionlessValidator) uint64 {
	staying := set.Of(c.identities()...)
	var departed, live uint64
	for _, validator := range current {
		if staying.Contains(validator.NodeID) {
			live += validator.Weight
		} else {
			departed += validator.Weight
		}
	}
	return stakeBeside(departed, live)
}

// stakeBeside is the least stake, not below a founder's, with which `departed` is a tenth of all or less.
func stakeBeside(departed, live uint64) uint64 {
	if needed := (departedShare - 1) * departed; needed > live+founderStake {
		return needed - live
	}
	return founderStake
}

// admit gives a node, which has a stake, a vote on the members' chain.
func (c *consortium) admit(ctx context.Context, node *tmpnet.Node) error {
	return c.onPlatform(ctx, func(ctx context.Context, client *platformvm.Client, wallet pwallet.Wallet) error {
		votes, err := currentValidators(ctx, client, c.subnet().SubnetID)
		if err != nil {
			return err
		}
		term, err := newTerm(ctx, client, node.NodeID, chainWeight)
		if err != nil {
			return err
		}
		stakes, err := client.GetCurrentValidators(ctx, constants.PrimaryNetworkID, []ids.NodeID{node.NodeID})
		if err != nil {
			return err
		}
		if len(stakes) != 1 {
			return fmt.Errorf("%s has no stake", node.NodeID)
		}
		// A vote ends with its stake, at the latest.
		term.End = stakes[0].EndTime
		_, err = wallet.IssueAddSubnetValidatorTx(
			&txs.SubnetValidator{Validator: *term, Subnet: c.subnet().SubnetID}, common.WithContext(ctx),
		)
		if err != nil {
			return err
		}
		votes.Add(node.NodeID)
		return c.setValidators(votes)
	})
}

// dismiss takes a node's vote away, if it has one. Its stake on the platform chain stays until its term ends.
func (c *consortium) dismiss(ctx context.Context, nodeID ids.NodeID) error {
	return c.onPlatform(ctx, func(ctx context.Context, client *platformvm.Client, wallet pwallet.Wallet) error {
		votes, err := currentValidators(ctx, client, c.subnet().SubnetID)
		if err != nil {
			return err
		}
		if votes.Contains(nodeID) {
			_, err := wallet.IssueRemoveSubnetValidatorTx(nodeID, c.subnet().SubnetID, common.WithContext(ctx))
			if err != nil {
				return err
			}
			votes.Remove(nodeID)
		}
		return c.setValidators(votes)
	})
}

func newTerm(ctx context.Context, client *platformvm.Client, nodeID ids.NodeID, weight uint64) (*txs.Validator, error) {
	now, err := client.GetTimestamp(ctx)
	if err != nil {
		return nil, err
	}
	return &txs.Validator{NodeID: nodeID, End: uint64(now.Add(stakeTerm - termMargin).Unix()), Wght: weight}, nil
}

// setValidators writes down who votes, as soon as the platform chain has it: the wait for the slowest validator may fail.
func (c *consortium) setValidators(votes set.Set[ids.NodeID]) error {
	nodeIDs := votes.List()
	slices.SortFunc(nodeIDs, ids.NodeID.Compare)
	c.subnet().ValidatorIDs = nodeIDs
	return c.subnet().Write(c.network.GetSubnetDir())
}

// onPlatform acts on the platform chain through the first validator that answers, once all that run have what went before,
// and returns when all of them have the change.
//
// Without the wait an identity could be taken off the network while a slow validator still counts its stake and not yet that
// of its successor: more than a fifth would be silent in that validator's eyes, and it would never accept a block again.
func (c *consortium) onPlatform(
	ctx context.Context, act func(context.Context, *platformvm.Client, pwallet.Wallet) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, membershipTimeout)
	defer cancel()
	followers := map[int]platformFollower{}
	for _, node := range c.network.Nodes {
		if node.URI != "" {
			followers[numberOf(node)] = platformvm.NewClient(node.URI)
		}
	}
	if err := waitUntilLevel(ctx, followers); err != nil {
		return err
	}
	if err := c.actOnPlatform(ctx, act); err != nil {
		return err
	}
	return waitUntilLevel(ctx, followers)
}

func (c *consortium) actOnPlatform(
	ctx context.Context, act func(context.Context, *platformvm.Client, pwallet.Wallet) error,
) error {
	for _, node := range c.network.Nodes {
		if !c.isHealthy(ctx, node.URI) {
			continue
		}
		wallet, err := c.subnet().GetWallet(ctx, node.URI)
		if err != nil {
			return err
		}
		if err := act(ctx, platformvm.NewClient(node.URI), wallet.P()); err != nil {
			return fmt.Errorf("the platform chain does not take the change of validators: %w", err)
		}
		return nil
	}
	return errors.New("no validator is healthy")
}

// platformFollower is a validator as far as the platform chain goes.
type platformFollower interface {
	GetHeight(ctx context.Context, options ...rpc.Option) (uint64, error)
}

// waitUntilLevel waits until every validator, by number, has the highest platform block that any of them has.
func waitUntilLevel(ctx context.Context, followers map[int]platformFollower) error {
	for {
		heights := map[int]uint64{}
		var top uint64
		for number, follower := range followers {
			// One that does not answer now is behind at height 0 until it does.
			heights[number], _ = follower.GetHeight(ctx)
			top = max(top, heights[number])
		}
		behind := []int{}
		for number, height := range heights {
			if height < top || height == 0 {
				behind = append(behind, number)
			}
		}
		if len(behind) == 0 {
			return nil
		}
		slices.Sort(behind)
		select {
		case <-ctx.Done():
			return fmt.Errorf("validators %v do not follow the platform chain to its block %d; restart them, "+
				"so that they fetch it anew, and repeat the command", behind, top)
		case <-time.After(4 * pollInterval):
		}
	}
}
