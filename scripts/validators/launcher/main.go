// Runs a consortium's validators on one machine: AvalancheGo nodes that carry one Subnet-EVM chain.
//
// Built and called by `scripts/consortium`. Each command locks the network's directory, acts and returns; the
// validators run on by themselves. Everything of a network lies under its directory and on loopback.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ava-labs/avalanchego/tests/fixture/tmpnet"
)

type options struct {
	state     string
	directory string
	json      bool
}

var started = time.Now()

func main() {
	// Keys lie among the files that validators write.
	syscall.Umask(0o077)
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var given options
	root := &cobra.Command{
		Use:           "scripts/consortium",
		Short:         "Five validators of one Subnet-EVM chain on this machine",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().StringVar(&given.directory, "directory", "", "directory of the network (default: in the clone)")
	root.PersistentFlags().StringVar(&given.state, "state", "", "where builds and the default network are")
	root.PersistentFlags().BoolVar(&given.json, "json", false, "print JSON")

	var genesis, name string
	up := given.onNetwork("up", "start a new network, or the one in the directory from its disk",
		func(ctx context.Context, c *consortium) error { return c.up(ctx, genesis) })
	up.Flags().StringVar(&genesis, "genesis", "", "genesis of a new chain (JSON file)")
	upgrade := given.onValidator("upgrade", "restart a validator on the programs of another build",
		func(ctx context.Context, c *consortium, node *tmpnet.Node) error { return c.upgrade(ctx, node, name) })
	upgrade.Flags().StringVar(&name, "to", "", "name of the other build")

	root.AddCommand(
		up,
		given.down(),
		given.onNetwork("status", "say what runs", func(context.Context, *consortium) error { return nil }),
		given.onValidator("kill", "end a validator at once (SIGKILL)",
			func(_ context.Context, c *consortium, node *tmpnet.Node) error { return c.stop(node, true) }),
		given.onValidator("restart", "stop a validator in order, if it runs, and start it from its disk",
			func(ctx context.Context, c *consortium, node *tmpnet.Node) error {
				if err := c.stop(node, false); err != nil {
					return err
				}
				return c.start(ctx, node)
			}),
		given.onNetwork("add", "start one more validator and give it a vote",
			func(ctx context.Context, c *consortium) error { return c.add(ctx) }),
		given.onValidator("remove", "take a validator's vote away and stop it",
			func(ctx context.Context, c *consortium, node *tmpnet.Node) error { return c.remove(ctx, node) }),
		given.onValidator("rotate", "give a validator new staking and signing keys, so a new identity",
			func(ctx context.Context, c *consortium, node *tmpnet.Node) error { return c.rotate(ctx, node) }),
		given.onValidator("rebuild", "wipe a validator's data but its keys, and fetch all from its peers",
			func(ctx context.Context, c *consortium, node *tmpnet.Node) error { return c.rebuild(ctx, node) }),
		upgrade,
		given.upgradeState(),
	)
	return root
}

// onNetwork is a command without a number; it ends with the network's description.
func (o *options) onNetwork(use, short string, act func(context.Context, *consortium) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(command *cobra.Command, _ []string) error {
		return o.run(command.Context(), use == "up", act)
	}}
}

// onValidator is a command on the validator whose number is its argument.
func (o *options) onValidator(
	use, short string, act func(context.Context, *consortium, *tmpnet.Node) error,
) *cobra.Command {
	return &cobra.Command{Use: use + " N", Short: short, Args: cobra.ExactArgs(1), RunE: func(command *cobra.Command, arguments []string) error {
		number, err := strconv.Atoi(arguments[0])
		if err != nil {
			return fmt.Errorf("%q is no validator's number", arguments[0])
		}
		return o.run(command.Context(), false, func(ctx context.Context, c *consortium) error {
			node, err := c.validator(number)
			if err != nil {
				return err
			}
			return act(ctx, c, node)
		})
	}}
}

// upgradeState is the way out when the contracts themselves are stuck; docs/consortium.md, "Recovery".
func (o *options) upgradeState() *cobra.Command {
	return &cobra.Command{
		Use:   "upgrade-state FILE",
		Short: "give every validator an upgrade file (state or precompiles at a time) and restart them one by one",
		Args:  cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, arguments []string) error {
			return o.run(command.Context(), false, func(ctx context.Context, c *consortium) error {
				return c.upgradeState(ctx, arguments[0])
			})
		},
	}
}

// down also cleans up after a launcher that died in the middle of `up`, so it reads no description.
func (o *options) down() *cobra.Command {
	return &cobra.Command{Use: "down", Short: "stop every validator", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		c, err := o.lock()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return c.stopAll()
	}}
}

func (o *options) lock() (*consortium, error) {
	return lockDirectory(o.networkDirectory(), filepath.Join(o.state, "build"))
}

func (o *options) networkDirectory() string {
	if o.directory != "" {
		return o.directory
	}
	return filepath.Join(o.state, "network")
}

func (o *options) run(ctx context.Context, mayCreate bool, act func(context.Context, *consortium) error) error {
	if mayCreate {
		if err := os.MkdirAll(o.networkDirectory(), 0o700); err != nil {
			return err
		}
	}
	missing := fmt.Errorf("there is no network in %s; `scripts/consortium up --genesis FILE` makes one",
		o.networkDirectory())
	c, err := o.lock()
	if errors.Is(err, os.ErrNotExist) {
		return missing
	}
	if err != nil {
		return err
	}
	if err := c.read(ctx); err != nil {
		return err
	}
	if c.network == nil && !mayCreate {
		return missing
	}
	if err := act(ctx, c); err != nil {
		return err
	}
	report, err := c.status(ctx)
	if err != nil {
		return err
	}
	return o.show(report)
}

func (o *options) show(report *statusReport) error {
	if o.json {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(report)
	}
	fmt.Printf("chain %d (%s) on network %d\n", report.ChainID, report.BlockchainID, report.NetworkID)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "validator\tstate\theight\tweight\tengine\tpid\tRPC")
	for _, v := range report.Validators {
		state := "down"
		if v.Healthy {
			state = "healthy"
		} else if v.Running {
			state = "unhealthy"
		}
		fmt.Fprintf(table, "%d\t%s\t%d\t%d\t%s\t%d\t%s\n", v.Number, state, v.Height, v.Weight, v.Engine, v.PID, v.RPCURL)
	}
	return table.Flush()
}

// say prints a line of progress; results go to the standard output, progress does not.
func say(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "[%6.1f s] %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, arguments...))
}
