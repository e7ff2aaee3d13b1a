// What runc writes into a v2 group: its own conversion of a spec, its own manager, its own `update`.
//
// Standard input has cases, each a group's directory, a spec, and what to change afterwards; standard output has for each
// of its steps what was written, in order, and the error if there was one. What is written goes nowhere else.
//
// Built in GOPATH mode from Debian's golang-github-opencontainers-runc-dev by ../against.rs, together with that package's
// update.go, which is why the functions that it calls have the names they have.
package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	_ "unsafe" // go:linkname

	"github.com/opencontainers/runc/libcontainer/cgroups"
	"github.com/opencontainers/runc/libcontainer/cgroups/fs2"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli"
	"golang.org/x/sys/unix"
)

// How runc opens what doesn't lie in /sys/fs/cgroup.
//
//go:linkname openFallback github.com/opencontainers/runc/libcontainer/cgroups.openFallback
var openFallback func(path string, flags int, mode os.FileMode) (*os.File, error)

type write struct {
	File  string `json:"file"`
	Value string `json:"value"`
}

type step struct {
	Error  string  `json:"error"`
	Writes []write `json:"writes"`
}

type opened struct {
	file string
	fd   int
}

var open []opened

// A socket that keeps writes apart; reading it gives what the file has.
func record(path string, flags int, mode os.FileMode) (*os.File, error) {
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return os.OpenFile(path, flags, mode)
	}
	has, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if flags&unix.O_ACCMODE == unix.O_RDWR {
		if _, err := unix.Write(pair[0], has); err != nil {
			return nil, err
		}
	}
	open = append(open, opened{filepath.Base(path), pair[0]})
	return os.NewFile(uintptr(pair[1]), path), nil
}

func taken(err error) step {
	done := step{Writes: []write{}}
	if err != nil {
		done.Error = err.Error()
	}
	buffer := make([]byte, 1<<16)
	for _, o := range open {
		for {
			n, err := unix.Read(o.fd, buffer)
			if n <= 0 || err != nil {
				break
			}
			done.Writes = append(done.Writes, write{o.file, string(buffer[:n])})
		}
		unix.Close(o.fd)
	}
	open = nil
	return done
}

// The container that runc's `update` finds.
type container struct {
	config  configs.Config
	manager cgroups.Manager
}

type state struct {
	IntelRdtPath   string
	InitProcessPid int
}

var current *container

func (c *container) ID() string             { return "case" }
func (c *container) Config() configs.Config { return c.config }
func (c *container) State() (*state, error) { return &state{}, nil }
func (c *container) Set(config configs.Config) error {
	err := c.manager.Set(config.Cgroups.Resources)
	if err == nil {
		c.config = config
	}
	return err
}

const exactArgs = 0

func checkArgs(*cli.Context, int, int) error        { return nil }
func getContainer(*cli.Context) (*container, error) { return current, nil }

func update(resources json.RawMessage) error {
	file, err := os.CreateTemp("", "resources-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	if _, err := file.Write(resources); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	app := cli.NewApp()
	app.Commands = []cli.Command{updateCommand}
	return app.Run([]string{"runc", "update", "--resources", file.Name(), "case"})
}

func create(dir string, spec *specs.Spec) error {
	group, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{CgroupName: "case", Spec: spec}, nil)
	if err != nil {
		return err
	}
	// Devices are a program, not a file.
	group.Resources.SkipDevices = true
	manager, err := fs2.NewManager(group, dir)
	if err != nil {
		return err
	}
	current = &container{configs.Config{Cgroups: group}, manager}
	return manager.Set(group.Resources)
}

func main() {
	openFallback = record
	var cases []struct {
		Dir    string            `json:"dir"`
		Spec   specs.Spec        `json:"spec"`
		Update []json.RawMessage `json:"update"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	all := [][]step{}
	for _, c := range cases {
		steps := []step{taken(create(c.Dir, &c.Spec))}
		for _, resources := range c.Update {
			steps = append(steps, taken(update(resources)))
		}
		all = append(all, steps)
	}
	if err := json.NewEncoder(os.Stdout).Encode(all); err != nil {
		panic(err)
	}
}
