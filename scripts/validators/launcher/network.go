package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ava-labs/avalanchego/api/health"
	"github.com/ava-labs/avalanchego/chains"
	"github.com/ava-labs/avalanchego/config"
	"github.com/ava-labs/avalanchego/database/pebbledb"
	"github.com/ava-labs/avalanchego/genesis"
	"github.com/ava-labs/avalanchego/ids"
	"github.com/ava-labs/avalanchego/tests/fixture/tmpnet"
	"github.com/ava-labs/avalanchego/utils/constants"
	"github.com/ava-labs/avalanchego/utils/crypto/secp256k1"
	"github.com/ava-labs/avalanchego/utils/formatting/address"
	"github.com/ava-labs/avalanchego/utils/logging"
	"github.com/ava-labs/avalanchego/utils/ulimit"
	"github.com/ava-labs/avalanchego/utils/units"
)

const (
	validatorCount = 5
	chainName      = "usufruct"
	vmName         = "srEXiWaHuhNyGwPUi444Tu47ZEDwxTWrbQiuD7FmgSAQ6X7Dy"
	defaultBuild   = "default"
	upgradeFile    = "upgrade.json"
	dataDirPrefix  = "validator-"

	stakeTerm    = 10 * 365 * 24 * time.Hour
	startTimeout = 3 * time.Minute

	founderStake  = 2 * units.KiloAvax // the least that the platform takes
	platformFunds = 500 * units.MegaAvax

	// The VM's settings on every validator. Archive: an auditor may ask for the state of any block. The
	// pool is as deep as a batch of the library; the debugging and administration interfaces stay shut.
	//
	// database-config is {"sync": true}. Left to its default, the VM keeps its last writes in its own memory: a
	// killed process forgets blocks that were final, and five killed at once take them from the chain.
	chainConfig = `{
  "warp-api-enabled": true,
  "pruning-enabled": false,
  "database-config": "eyJzeW5jIjogdHJ1ZX0=",
  "eth-apis": ["eth", "eth-filter", "net", "web3", "internal-eth", "internal-blockchain", "internal-transaction",
    "internal-tx-pool"],
  "tx-pool-account-slots": 1024,
  "tx-pool-account-queue": 4096,
  "tx-pool-global-slots": 16384,
  "tx-pool-global-queue": 16384,
  "log-level": "info"
}`
)

// consortium is a network of validators whose state lies under one directory.
type consortium struct {
	directory string
	builds    string
	network   *tmpnet.Network
	lock      *os.File
}

// lockDirectory takes an existing directory for this process; the lock ends with it.
func lockDirectory(directory, builds string) (*consortium, error) {
	absolute, err := filepath.Abs(directory)
	if err != nil {
		return nil, err
	}
	absolute, err = filepath.EvalSymlinks(absolute)
	if err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(absolute, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		say("another command runs on %s; waiting for it", absolute)
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
			return nil, fmt.Errorf("%s cannot be locked: %w", absolute, err)
		}
	}
	// The fixture keeps notes for a metrics collector in the home directory, validators temporary keystores: they belong here.
	temporary := filepath.Join(absolute, "tmp")
	if err := os.MkdirAll(temporary, 0o700); err != nil {
		return nil, err
	}
	for name, path := range map[string]string{"HOME": filepath.Join(absolute, "home"), "TMPDIR": temporary} {
		if err := os.Setenv(name, path); err != nil {
			return nil, err
		}
	}
	return &consortium{directory: absolute, builds: builds, lock: lock}, nil
}

// read loads the network, if there is one yet. The description is written last, so it marks a whole one.
func (c *consortium) read(ctx context.Context) error {
	if _, err := os.Stat(c.descriptionPath()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, dataDir := range c.dataDirs() {
		if err := forgetDead(dataDir); err != nil {
			return err
		}
	}
	network, err := tmpnet.ReadNetwork(ctx, logging.NoLog{}, c.networkDir())
	if err != nil {
		return fmt.Errorf("%s holds no readable network: %w", c.directory, err)
	}
	c.network = network
	if c.subnet() == nil {
		return fmt.Errorf("%s holds a network without the chain", c.directory)
	}
	return nil
}

// up starts a new network from a genesis file, or every validator of the one that is there.
func (c *consortium) up(ctx context.Context, genesisFile string) error {
	if c.network != nil {
		if genesisFile != "" {
			return fmt.Errorf("%s holds a network already; leave out --genesis to start it", c.directory)
		}
		say("starting %d validators from their disks", len(c.network.Nodes))
		return c.startAll(ctx, c.network.Nodes...)
	}
	if genesisFile == "" {
		return fmt.Errorf("there is no network in %s; name a genesis file for a new one", c.directory)
	}
	chainGenesis, err := os.ReadFile(genesisFile)
	if err != nil {
		return err
	}
	if !json.Valid(chainGenesis) {
		return fmt.Errorf("%s is no JSON", genesisFile)
	}
	if err := c.create(ctx, chainGenesis); err != nil {
		return errors.Join(err, c.stopAll())
	}
	return nil
}

func (c *consortium) networkDir() string      { return filepath.Join(c.directory, "network") }
func (c *consortium) descriptionPath() string { return filepath.Join(c.directory, "consortium.json") }
func (c *consortium) upgradePath() string     { return filepath.Join(c.directory, upgradeFile) }
func (c *consortium) subnet() *tmpnet.Subnet  { return c.network.GetSubnet(chainName) }
func (c *consortium) chain() *tmpnet.Chain    { return c.subnet().Chains[0] }

func (c *consortium) dataDirs() []string {
	found, err := filepath.Glob(filepath.Join(c.networkDir(), dataDirPrefix+"*"))
	if err != nil {
		return nil // only a malformed pattern fails
	}
	return found
}

func (c *consortium) dataDir(number int) string {
	return filepath.Join(c.networkDir(), dataDirPrefix+strconv.Itoa(number))
}

func numberOf(node *tmpnet.Node) int {
	number, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(node.DataDir), dataDirPrefix))
	if err != nil {
		return 0
	}
	return number
}

// validator returns the node with this number.
func (c *consortium) validator(number int) (*tmpnet.Node, error) {
	for _, node := range c.network.Nodes {
		if numberOf(node) == number {
			return node, nil
		}
	}
	return nil, fmt.Errorf("there is no validator %d", number)
}

func (c *consortium) runtimeConfig(name string) tmpnet.NodeRuntimeConfig {
	build := filepath.Join(c.builds, name)
	return tmpnet.NodeRuntimeConfig{Process: &tmpnet.ProcessRuntimeConfig{
		AvalancheGoPath: filepath.Join(build, "avalanchego"),
		PluginDir:       filepath.Join(build, "plugins"),
	}}
}

// create makes five validators, starts them, and creates the chain of `chainGenesis` on them.
func (c *consortium) create(ctx context.Context, chainGenesis []byte) error {
	if len(c.dataDirs()) > 0 {
		return fmt.Errorf("%s holds a network that was never finished; remove the directory", c.networkDir())
	}
	vmID, err := ids.FromString(vmName)
	if err != nil {
		return err
	}
	platformKey, err := secp256k1.NewPrivateKey()
	if err != nil {
		return err
	}
	nodes := make([]*tmpnet.Node, validatorCount)
	for i := range nodes {
		if nodes[i], err = c.newNode(i + 1); err != nil {
			return err
		}
	}
	networkID, err := randomNetworkID()
	if err != nil {
		return err
	}
	platformGenesis, err := platformGenesis(networkID, nodes, platformKey)
	if err != nil {
		return err
	}
	c.network = &tmpnet.Network{
		Owner:   chainName,
		Dir:     c.networkDir(),
		Genesis: platformGenesis,
		// The fixture's default for this chain logs every step.
		PrimaryChainConfigs:  map[string]tmpnet.ConfigMap{"C": {"log-level": "warn", "warp-api-enabled": false}},
		DefaultFlags:         nodeFlags(),
		DefaultRuntimeConfig: c.runtimeConfig(defaultBuild),
		PreFundedKeys:        []*secp256k1.PrivateKey{platformKey},
		Nodes:                nodes,
		Subnets: []*tmpnet.Subnet{{
			Name:         chainName,
			OwningKey:    platformKey,
			ValidatorIDs: tmpnet.NodesToIDs(nodes...),
			Chains:       []*tmpnet.Chain{{VMID: vmID, Config: chainConfig, Genesis: chainGenesis}},
		}},
	}
	if err := c.network.EnsureDefaultConfig(ctx, logging.NoLog{}); err != nil {
		return err
	}
	for _, node := range nodes {
		if err := c.network.EnsureNodeConfig(node); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(c.networkDir(), 0o700); err != nil {
		return err
	}
	if err := c.network.Write(); err != nil {
		return err
	}
	say("creating the chain and starting %d validators", len(nodes))
	if err := c.network.Bootstrap(ctx, logging.NoLog{}); err != nil {
		return err
	}
	for _, node := range c.network.Nodes {
		if err := pinPorts(node); err != nil {
			return err
		}
	}
	return nil
}

func (c *consortium) newNode(number int) (*tmpnet.Node, error) {
	node := tmpnet.NewNode()
	node.DataDir = c.dataDir(number)
	return node, node.EnsureKeys()
}

// randomNetworkID keeps two networks apart even where somebody mixes up their addresses.
func randomNetworkID() (uint32, error) {
	const first, count = 1_000_000, 1 << 31
	number, err := rand.Int(rand.Reader, big.NewInt(count))
	if err != nil {
		return 0, err
	}
	return uint32(first + number.Int64()), nil
}

// platformGenesis funds one fresh key and none of the well-known test keys. Founders' stakes are small beside
// the key's funds, so that the stakes of later identities can outweigh those of identities that have left.
func platformGenesis(
	networkID uint32, nodes []*tmpnet.Node, key *secp256k1.PrivateKey,
) (*genesis.UnparsedConfig, error) {
	config, err := tmpnet.NewTestGenesis(networkID, nodes, []*secp256k1.PrivateKey{key})
	if err != nil {
		return nil, err
	}
	keyAddress, err := address.Format("X", constants.GetHRP(networkID), key.Address().Bytes())
	if err != nil {
		return nil, err
	}
	for i := range config.Allocations {
		allocation := &config.Allocations[i]
		if allocation.AVAXAddr == keyAddress {
			allocation.InitialAmount = 0
			allocation.UnlockSchedule = []genesis.LockedAmount{{Amount: platformFunds}}
		} else {
			allocation.UnlockSchedule[0].Amount = uint64(len(nodes)) * founderStake
		}
	}
	config.InitialStakeDuration = uint64(stakeTerm.Seconds())
	config.Message = chainName
	return config, nil
}

func nodeFlags() tmpnet.FlagsMap {
	return tmpnet.FlagsMap{
		config.FdLimitKey:            strconv.FormatUint(descriptorLimit(), 10),
		config.MaxStakeDurationKey:   stakeTerm.String(),
		config.StakeMintingPeriodKey: stakeTerm.String(),
		config.MaxValidatorStakeKey:  strconv.FormatUint(platformFunds, 10),
		config.AdminAPIEnabledKey:    "false",
		config.IndexEnabledKey:       "false",
		// The default, LevelDB, is never synced to the disk; Pebble is, on every write.
		config.DBTypeKey:          pebbledb.Name,
		config.LogLevelKey:        logging.Info.String(),
		config.LogDisplayLevelKey: logging.Off.String(),
	}
}

func descriptorLimit() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return ulimit.DefaultFDLimit
	}
	return min(limit.Max, ulimit.DefaultFDLimit)
}

// start runs one validator with the chain's current configuration; it does not wait for health.
func (c *consortium) start(ctx context.Context, node *tmpnet.Node) error {
	pid, err := validatorProcess(node.DataDir)
	if err != nil {
		return err
	}
	if pid != 0 && isRunning(pid) {
		return nil
	}
	content, err := c.chainConfigContent()
	if err != nil {
		return err
	}
	node.Flags[config.ChainConfigContentKey] = content
	releaseTakenPorts(node)
	if err := setLastWordsAside(node.DataDir); err != nil {
		return err
	}
	if err := c.network.StartNode(ctx, node); err != nil {
		return fmt.Errorf("validator %d does not start (logs: %s): %w",
			numberOf(node), filepath.Join(node.DataDir, "logs"), err)
	}
	return pinPorts(node)
}

// startAll starts the given validators, then waits until each is healthy.
func (c *consortium) startAll(ctx context.Context, nodes ...*tmpnet.Node) error {
	for _, node := range nodes {
		if err := c.start(ctx, node); err != nil {
			return err
		}
	}
	return c.waitForHealth(ctx, nodes...)
}

func (c *consortium) waitForHealth(ctx context.Context, nodes ...*tmpnet.Node) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, node := range nodes {
		for !c.isHealthy(ctx, node.URI) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("validator %d runs but is not healthy after %s", numberOf(node), startTimeout)
			case <-time.After(4 * pollInterval):
			}
		}
	}
	return nil
}

// isHealthy asks for the members' chain only. The node's overall health also counts the platform's stakes,
// among them those of identities that have left; the chain does not depend on them.
func (c *consortium) isHealthy(ctx context.Context, uri string) bool {
	if uri == "" {
		return false
	}
	// Right after its start a node refuses, hangs up or answers 503.
	reply, err := health.NewClient(uri).Health(ctx, []string{c.subnet().SubnetID.String()})
	return err == nil && reply.Healthy
}

// chainConfigContent is what a validator reads at its start: the chain's settings and its upgrades.
func (c *consortium) chainConfigContent() (string, error) {
	upgrade, err := os.ReadFile(c.upgradePath())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	content, err := json.Marshal(map[string]chains.ChainConfig{
		"C":                        {Config: []byte(`{"log-level": "warn"}`)},
		c.chain().ChainID.String(): {Config: []byte(c.chain().Config), Upgrade: upgrade},
	})
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(content), nil
}

// pinPorts has a validator keep its addresses over restarts: clients and peers know them.
func pinPorts(node *tmpnet.Node) error {
	_, port, err := net.SplitHostPort(strings.TrimPrefix(node.URI, "http://"))
	if err != nil {
		return fmt.Errorf("validator %d reports the address %q: %w", numberOf(node), node.URI, err)
	}
	node.Flags[config.HTTPPortKey] = port
	node.Flags[config.StakingPortKey] = strconv.Itoa(int(node.StakingAddress.Port()))
	return node.Write()
}

// releaseTakenPorts lets a validator choose anew where somebody took its port while it was down.
func releaseTakenPorts(node *tmpnet.Node) {
	for _, key := range []string{config.HTTPPortKey, config.StakingPortKey} {
		port, pinned := node.Flags[key]
		if !pinned {
			continue
		}
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			delete(node.Flags, key)
			continue
		}
		listener.Close()
	}
}

// stopAll ends every process of the network, whoever started it.
func (c *consortium) stopAll() error {
	pids, err := validatorProcesses(c.networkDir())
	if err != nil {
		return err
	}
	return terminate(pids)
}

// stop ends one validator: at once (`kill`) or in order.
func (c *consortium) stop(node *tmpnet.Node, kill bool) error {
	pid, err := validatorProcess(node.DataDir)
	if err != nil {
		return err
	}
	if pid != 0 && kill {
		err = errors.Join(killGroup(pid), waitUntilGone([]int{pid}))
	} else if pid != 0 {
		err = terminate([]int{pid})
	}
	if err != nil {
		return err
	}
	node.URI = ""
	return forgetDead(node.DataDir)
}
