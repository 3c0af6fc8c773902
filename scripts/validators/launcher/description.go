package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ava-labs/avalanchego/api/info"
	"github.com/ava-labs/avalanchego/tests/fixture/tmpnet"
	"github.com/ava-labs/avalanchego/vms/platformvm"
)

const (
	descriptionVersion = 1
	queryTimeout       = 5 * time.Second
)

// description is `consortium.json`; docs/consortium.md documents its fields.
type description struct {
	Version      int                    `json:"version"`
	Directory    string                 `json:"directory"`
	NetworkID    uint32                 `json:"network_id"`
	SubnetID     string                 `json:"subnet_id"`
	BlockchainID string                 `json:"blockchain_id"`
	ChainIDHex   string                 `json:"blockchain_id_hex"`
	ChainID      uint64                 `json:"chain_id"`
	GenesisHash  string                 `json:"genesis_hash"`
	RPCURLs      []string               `json:"rpc_urls"`
	PlatformURLs []string               `json:"platform_urls"`
	Validators   []validatorDescription `json:"validators"`
}

type validatorDescription struct {
	Number       int    `json:"number"`
	NodeID       string `json:"node_id"`
	BLSPublicKey string `json:"bls_public_key"`
	Weight       uint64 `json:"weight"`
	URI          string `json:"uri"`
	RPCURL       string `json:"rpc_url"`
	Staking      string `json:"staking_address"`
	DataDir      string `json:"data_directory"`
	Build        string `json:"build"`
	PID          int    `json:"pid"`
	Running      bool   `json:"running"`
}

// validatorStatus adds what only the running validator knows.
type validatorStatus struct {
	validatorDescription
	Healthy bool   `json:"healthy"`
	Height  uint64 `json:"height"`
	Engine  string `json:"engine"`
}

type statusReport struct {
	description
	Validators []validatorStatus `json:"validators"`
}

// describe writes `consortium.json` and returns its content. What the validators must be asked for (the
// chain's id, who votes) is kept from the last time when none of them answers.
func (c *consortium) describe(ctx context.Context) (*description, error) {
	known := &description{}
	if content, err := os.ReadFile(c.descriptionPath()); err == nil {
		if err := json.Unmarshal(content, known); err != nil {
			return nil, fmt.Errorf("%s is damaged: %w", c.descriptionPath(), err)
		}
	}
	chainID := c.chain().ChainID
	described := &description{
		Version:      descriptionVersion,
		Directory:    c.directory,
		NetworkID:    c.network.GetNetworkID(),
		SubnetID:     c.subnet().SubnetID.String(),
		BlockchainID: chainID.String(),
		ChainIDHex:   fmt.Sprintf("0x%x", chainID[:]),
		ChainID:      known.ChainID,
		GenesisHash:  known.GenesisHash,
	}
	weights := map[string]uint64{}
	for _, validator := range known.Validators {
		weights[validator.NodeID] = validator.Weight
	}
	nodes := slices.Clone(c.network.Nodes)
	slices.SortFunc(nodes, func(a, b *tmpnet.Node) int { return numberOf(a) - numberOf(b) })
	for _, node := range nodes {
		if node.URI == "" {
			continue
		}
		if current, err := c.weights(ctx, node.URI); err == nil {
			weights = current
			break
		}
	}
	for _, node := range nodes {
		validator, err := c.describeValidator(node, known, weights)
		if err != nil {
			return nil, err
		}
		described.Validators = append(described.Validators, *validator)
		described.RPCURLs = append(described.RPCURLs, validator.RPCURL)
		described.PlatformURLs = append(described.PlatformURLs, validator.URI+"/ext/bc/P")
		if described.GenesisHash == "" && validator.Running {
			if err := askChain(ctx, validator.RPCURL, described); err != nil {
				return nil, err
			}
		}
	}
	return described, writePrivate(c.descriptionPath(), described)
}

func (c *consortium) describeValidator(
	node *tmpnet.Node, known *description, weights map[string]uint64,
) (*validatorDescription, error) {
	proof, err := node.GetProofOfPossession()
	if err != nil {
		return nil, err
	}
	pid, err := validatorProcess(node.DataDir)
	if err != nil {
		return nil, err
	}
	described := &validatorDescription{
		Number:       numberOf(node),
		NodeID:       node.NodeID.String(),
		BLSPublicKey: fmt.Sprintf("0x%x", proof.PublicKey[:]),
		Weight:       weights[node.NodeID.String()],
		URI:          node.URI,
		Staking:      node.StakingAddress.String(),
		DataDir:      node.DataDir,
		Build:        filepath.Dir(c.network.DefaultRuntimeConfig.Process.AvalancheGoPath),
		PID:          pid,
		Running:      pid != 0 && isRunning(pid),
	}
	if node.RuntimeConfig != nil {
		described.Build = filepath.Dir(node.RuntimeConfig.Process.AvalancheGoPath)
	}
	if !described.Running {
		// Where it will listen again, unless somebody takes its port.
		described.PID = 0
		for _, before := range known.Validators {
			if before.Number == described.Number {
				described.URI, described.Staking = before.URI, before.Staking
			}
		}
	}
	described.RPCURL = fmt.Sprintf("%s/ext/bc/%s/rpc", described.URI, c.chain().ChainID)
	return described, nil
}

// weights returns the votes on the chain by node id, as the platform chain has them.
func (c *consortium) weights(ctx context.Context, uri string) (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	current, err := platformvm.NewClient(uri).GetCurrentValidators(ctx, c.subnet().SubnetID, nil)
	if err != nil {
		return nil, err
	}
	weights := map[string]uint64{}
	for _, validator := range current {
		weights[validator.NodeID.String()] = validator.Weight
	}
	return weights, nil
}

func (c *consortium) status(ctx context.Context) (*statusReport, error) {
	described, err := c.describe(ctx)
	if err != nil {
		return nil, err
	}
	report := &statusReport{description: *described}
	for _, validator := range described.Validators {
		status := validatorStatus{validatorDescription: validator}
		if validator.Running {
			c.probe(ctx, &status)
		}
		report.Validators = append(report.Validators, status)
	}
	return report, nil
}

// probe fills in what the validator says of itself; one that does not answer keeps the zero values.
func (c *consortium) probe(ctx context.Context, status *validatorStatus) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	status.Healthy = c.isHealthy(ctx, status.URI)
	if version, err := info.NewClient(status.URI).GetNodeVersion(ctx); err == nil {
		status.Engine = strings.TrimSuffix(version.Version+"@"+version.GitCommit, "@")
	}
	var height string
	if err := callChain(ctx, status.RPCURL, "eth_blockNumber", &height); err == nil {
		status.Height, _ = strconv.ParseUint(strings.TrimPrefix(height, "0x"), 16, 64)
	}
}

func askChain(ctx context.Context, url string, described *description) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var chainID string
	if err := callChain(ctx, url, "eth_chainId", &chainID); err != nil {
		return err
	}
	var genesis struct {
		Hash string `json:"hash"`
	}
	if err := callChain(ctx, url, "eth_getBlockByNumber", &genesis, "0x0", false); err != nil {
		return err
	}
	number, err := strconv.ParseUint(strings.TrimPrefix(chainID, "0x"), 16, 64)
	if err != nil {
		return fmt.Errorf("%s reports the chain id %q: %w", url, chainID, err)
	}
	described.ChainID, described.GenesisHash = number, genesis.Hash
	return nil
}

func callChain(ctx context.Context, url, method string, result any, parameters ...any) error {
	if parameters == nil {
		parameters = []any{}
	}
	body, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var answer struct {
		Result json.RawMessage `json:"result"`
		Error  json.RawMessage `json:"error"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s answers no JSON: %w", url, err)
	}
	if answer.Error != nil {
		return fmt.Errorf("%s answers %s with %s", url, method, answer.Error)
	}
	return json.Unmarshal(answer.Result, result)
}

// writePrivate replaces a file in one step, so that a reader never sees half of it.
func writePrivate(path string, content any) error {
	encoded, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return err
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, append(encoded, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
