// The chain's virtual machine as AvalancheGo's plugin: Subnet-EVM, unchanged.
//
// Subnet-EVM's own main exits where the hard limit of file descriptors is below 32,768; this one takes
// the limit that the machine gives.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/ava-labs/avalanchego/vms/rpcchainvm"
	"github.com/ava-labs/subnet-evm/plugin/evm"
)

func main() {
	evm.RegisterAllLibEVMExtras()
	if err := rpcchainvm.Serve(context.Background(), &evm.VM{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
