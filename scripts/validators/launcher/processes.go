package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/ava-labs/avalanchego/config"
)

const (
	pollInterval = 50 * time.Millisecond
	// A validator closes its databases within a second or two; beyond this it hangs.
	terminationTimeout = 30 * time.Second
)

// validatorProcess returns the process that runs the validator of `dataDir`, or 0.
//
// The process table is the witness: a pid file outlives a crash, and its number may be somebody else's by then.
func validatorProcess(dataDir string) (int, error) {
	pids, err := validatorProcesses(dataDir)
	if err != nil || len(pids) == 0 {
		return 0, err
	}
	return pids[0], nil
}

// validatorProcesses returns the processes of every validator whose data lies in or below `directory`.
func validatorProcesses(directory string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("the process table cannot be read: %w", err)
	}
	prefix := []byte(filepath.Clean(directory) + string(filepath.Separator))
	found := []int{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		// A process may end between the listing and the read.
		commandLine, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil {
			continue
		}
		arguments := bytes.Split(commandLine, []byte{0})
		if len(arguments) >= 3 && string(arguments[1]) == "--config-file" && bytes.HasPrefix(arguments[2], prefix) {
			found = append(found, pid)
		}
	}
	return found, nil
}

// killGroup ends a validator and its plugin processes at once, as a power cut would. Each validator leads
// a session and so a process group of its own.
func killGroup(pid int) error {
	if err := syscall.Kill(-pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("process group %d cannot be killed: %w", pid, err)
	}
	return nil
}

// terminate asks validators to stop, waits, and kills what is left, plugins included.
func terminate(pids []int) error {
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("process %d cannot be stopped: %w", pid, err)
		}
	}
	deadline := time.Now().Add(terminationTimeout)
	for _, pid := range pids {
		for isRunning(pid) && time.Now().Before(deadline) {
			time.Sleep(pollInterval)
		}
		if err := killGroup(pid); err != nil {
			return err
		}
	}
	return waitUntilGone(pids)
}

func waitUntilGone(pids []int) error {
	deadline := time.Now().Add(terminationTimeout)
	for _, pid := range pids {
		for isRunning(pid) {
			if time.Now().After(deadline) {
				return fmt.Errorf("process %d does not end", pid)
			}
			time.Sleep(pollInterval)
		}
	}
	return nil
}

// isRunning tells a live process from one that has ended and waits to be reaped.
func isRunning(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	// The state follows the command's name, which stands in parentheses and may hold any byte.
	closing := bytes.LastIndexByte(stat, ')')
	return closing >= 0 && closing+2 < len(stat) && stat[closing+2] != 'Z'
}

// setLastWordsAside moves the log of a validator that does not run: the fixture takes a fatal line in it, such as that of one
// that stopped for want of disk space, for the end of the next start.
func setLastWordsAside(dataDir string) error {
	path := filepath.Join(dataDir, "logs", "main.log")
	content, err := os.ReadFile(path) // #nosec G304
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil || !bytes.Contains(content, []byte("FATAL")) {
		return err
	}
	return os.Rename(path, filepath.Join(dataDir, "logs", fmt.Sprintf("main-until-%d.log", time.Now().Unix())))
}

// forgetDead removes the address file of a validator that no longer runs, so that nobody dials it.
func forgetDead(dataDir string) error {
	pid, err := validatorProcess(dataDir)
	if err != nil || (pid != 0 && isRunning(pid)) {
		return err
	}
	err = os.Remove(filepath.Join(dataDir, config.DefaultProcessContextFilename))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
