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
	"github.com/ava-labs/avalanchego/utils/units"
	"github.com/ava-labs/avalanchego/vms/platformvm"
	"github.com/ava-labs/avalanchego/vms/platformvm/reward"
	"github.com/ava-labs/avalanchego/vms/platformvm/txs"
	"github.com/ava-labs/avalanchego/vms/secp256k1fx"
	"github.com/ava-labs/avalanchego/wallet/subnet/primary/common"
)

const (
	platformStake = units.MegaAvax  // what the platform's genesis gives each founder
	chainWeight   = units.Schmeckle // what the fixture gives each founder on the chain
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
	runtime := c.runtimeConfig(c.build)
	node.RuntimeConfig = &runtime
	node.Flags[config.TrackSubnetsKey] = c.subnet().SubnetID.String()
	c.network.Nodes = append(c.network.Nodes, node)
	if err := c.startAll(ctx, node); err != nil {
		return err
	}
	return c.admit(ctx, node)
}

// remove takes a validator's vote away and stops it. Its data stays on its disk.
func (c *consortium) remove(ctx context.Context, node *tmpnet.Node) error {
	if err := c.dismiss(ctx, node.NodeID); err != nil {
		return err
	}
	if err := c.stop(node, false); err != nil {
		return err
	}
	return os.Rename(node.DataDir, filepath.Join(c.networkDir(), "removed-"+node.NodeID.String()))
}

// rotate gives a validator new staking and signing keys, so a new identity, on its old data. The old
// identity loses its vote first: one of five is missing at any moment of the change, never two.
func (c *consortium) rotate(ctx context.Context, node *tmpnet.Node) error {
	if err := c.dismiss(ctx, node.NodeID); err != nil {
		return err
	}
	if err := c.stop(node, false); err != nil {
		return err
	}
	for _, key := range []string{
		config.StakingTLSKeyContentKey, config.StakingCertContentKey, config.StakingSignerKeyContentKey,
	} {
		delete(node.Flags, key)
	}
	if err := node.EnsureKeys(); err != nil {
		return err
	}
	if err := c.startAll(ctx, node); err != nil {
		return err
	}
	return c.admit(ctx, node)
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
func (c *consortium) upgrade(ctx context.Context, node *tmpnet.Node, build string) error {
	runtime := c.runtimeConfig(build)
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

// admit stakes for a node on the platform chain and gives it a vote on the members' chain.
func (c *consortium) admit(ctx context.Context, node *tmpnet.Node) error {
	client, uri, err := c.platform(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, membershipTimeout)
	defer cancel()
	wallet, err := c.subnet().GetWallet(ctx, uri)
	if err != nil {
		return err
	}
	proof, err := node.GetProofOfPossession()
	if err != nil {
		return err
	}
	now, err := client.GetTimestamp(ctx)
	if err != nil {
		return err
	}
	term := txs.Validator{NodeID: node.NodeID, End: uint64(now.Add(stakeTerm - termMargin).Unix()), Wght: platformStake}
	owner := &secp256k1fx.OutputOwners{Threshold: 1, Addrs: []ids.ShortID{c.subnet().OwningKey.Address()}}
	if _, err := wallet.P().IssueAddPermissionlessValidatorTx(
		&txs.SubnetValidator{Validator: term, Subnet: constants.PrimaryNetworkID},
		proof, wallet.P().Builder().Context().AVAXAssetID, owner, owner, reward.PercentDenominator,
		common.WithContext(ctx),
	); err != nil {
		return fmt.Errorf("the platform chain does not take the stake: %w", err)
	}
	term.Wght = chainWeight
	if _, err := wallet.P().IssueAddSubnetValidatorTx(
		&txs.SubnetValidator{Validator: term, Subnet: c.subnet().SubnetID}, common.WithContext(ctx),
	); err != nil {
		return fmt.Errorf("the platform chain does not take the validator: %w", err)
	}
	return c.setValidators(append(c.subnet().ValidatorIDs, node.NodeID))
}

// dismiss takes a node's vote away. Its stake on the platform chain stays until its term ends.
func (c *consortium) dismiss(ctx context.Context, nodeID ids.NodeID) error {
	if !slices.Contains(c.subnet().ValidatorIDs, nodeID) {
		return nil
	}
	_, uri, err := c.platform(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, membershipTimeout)
	defer cancel()
	wallet, err := c.subnet().GetWallet(ctx, uri)
	if err != nil {
		return err
	}
	if _, err := wallet.P().IssueRemoveSubnetValidatorTx(
		nodeID, c.subnet().SubnetID, common.WithContext(ctx),
	); err != nil {
		return fmt.Errorf("the platform chain does not dismiss the validator: %w", err)
	}
	left := slices.DeleteFunc(slices.Clone(c.subnet().ValidatorIDs), func(id ids.NodeID) bool { return id == nodeID })
	return c.setValidators(left)
}

func (c *consortium) setValidators(nodeIDs []ids.NodeID) error {
	c.subnet().ValidatorIDs = nodeIDs
	return c.subnet().Write(c.network.GetSubnetDir())
}

// platform returns a client of the platform chain on a healthy validator.
func (c *consortium) platform(ctx context.Context) (*platformvm.Client, string, error) {
	for _, node := range c.network.Nodes {
		if healthy, err := node.IsHealthy(ctx); err == nil && healthy {
			return platformvm.NewClient(node.URI), node.URI, nil
		}
	}
	return nil, "", errors.New("no validator is healthy")
}
