package aws

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/etcd-manager/etcd-manager/pkg/volume"
)

const (
	// DefaultPoll is the time between the first looks at EC2 while something is waited for; it doubles up to maxPoll.
	DefaultPoll = 2 * time.Second
	maxPoll     = 30 * time.Second
	// sayAgain is how often it is said what is waited for while that doesn't change.
	sayAgain = time.Minute
	// attachPatience is how long EC2 may show a volume as free that it was told to attach, before that is tried anew.
	attachPatience = time.Minute
	// refusedPatience is how long a look shows nothing but what is refused, before that is believed: EC2's answers may be a little old.
	refusedPatience = 3
)

// Acquirer gets this machine its volume.
type Acquirer struct {
	Client *Client
	Self   *Self
	Host   volume.Host
	// DeviceRoot is where the machine's /dev and /sys are, usually "/".
	DeviceRoot string
	Encryption volume.Encryption
	// ForceDetachAfter is how long a volume may be stuck on a machine that doesn't run before it is
	// detached by force; 0 means that it never is.
	ForceDetachAfter time.Duration
	// Unmount, if not nil, unmounts a volume that was given up, before it is detached. That it isn't mounted is no error.
	Unmount func(context.Context, *volume.Volume) error
	// Say tells the operator what is waited for.
	Say func(format string, args ...any)
	// Poll is the shortest time between two looks at EC2; 0 means DefaultPoll.
	Poll time.Duration

	held map[heldKey]time.Time
	said string
	at   time.Time
	used map[string]bool // device names that turned out to be taken
}

type heldKey struct {
	volume   volume.ID
	instance string
}

// Acquire returns this machine's volume, attached, and the device that it is here. It waits as long
// as it takes and says for what; an error means that waiting can't help.
func (a *Acquirer) Acquire(ctx context.Context) (*volume.Volume, string, error) {
	wait, refused := a.poll(), 0
	for {
		s, err := a.look(ctx)
		progress := false
		switch {
		case err != nil:
		case s.release != nil:
			err = a.release(ctx, s.release)
			progress = err == nil
		case s.use != nil:
			if s.warn != "" {
				a.tell(s.warn)
			}
			device, err := a.device(ctx, s.use)
			return s.use, device, err
		case len(s.attach) > 0:
			progress, err = a.attachOne(ctx, s.attach)
		case s.force != nil:
			err = a.force(ctx, s.force, s.reason)
			progress = err == nil
		case s.refused != nil && refused+1 >= refusedPatience:
			return nil, "", s.refused
		}
		if s.refused != nil && s.use == nil && len(s.attach) == 0 {
			refused++
		} else {
			refused = 0
		}
		if err := a.bear(ctx, s, err); err != nil {
			return nil, "", err
		}
		if progress {
			wait = a.poll()
		}
		if !sleep(ctx, wait) {
			return nil, "", context.Cause(ctx)
		}
		wait = min(2*wait, max(maxPoll, a.poll()))
	}
}

func (a *Acquirer) poll() time.Duration {
	if a.Poll > 0 {
		return a.Poll
	}
	return DefaultPoll
}

// bear says what is waited for and returns the errors that waiting doesn't mend.
func (a *Acquirer) bear(ctx context.Context, s step, err error) error {
	var denied *PermissionError
	switch {
	case errors.As(err, &denied):
		return err
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		a.tell("waiting for EC2: " + err.Error())
	case len(s.waiting) > 0 && len(s.attach) == 0:
		a.tell("waiting for a volume: " + strings.Join(s.waiting, "; "))
	}
	return nil
}

// tell says what has changed at once and the same again now and then.
func (a *Acquirer) tell(text string) {
	if text == a.said && time.Since(a.at) < sayAgain {
		return
	}
	a.said, a.at = text, time.Now()
	a.say("%s", text)
}

func (a *Acquirer) say(format string, args ...any) {
	if a.Say != nil {
		a.Say(format, args...)
	}
}

// look describes the cluster's volumes and what holds those of the zone.
func (a *Acquirer) look(ctx context.Context) (step, error) {
	everywhere, err := a.Client.Volumes(ctx, "")
	if err != nil {
		return step{}, err
	}
	volumes := slices.DeleteFunc(slices.Clone(everywhere), func(v *volume.Volume) bool { return v.Zone != a.Self.Zone })
	var holders []string
	for _, v := range volumes {
		if at := attachment(v); at != nil && at.Instance != a.Self.Instance && !slices.Contains(holders, at.Instance) {
			holders = append(holders, at.Instance)
		}
	}
	instances, err := Instances(ctx, a.Client, holders)
	if err != nil {
		return step{}, err
	}
	return choose(view{self: a.Self, cfg: a.Client.cfg, volumes: volumes, everywhere: everywhere, instances: instances,
		encryption: a.Encryption, forceAfter: a.ForceDetachAfter, stuckFor: a.stuckFor}), nil
}

// stuckFor remembers since when a volume was seen stuck, without a break: one old answer of EC2 must not take it from a machine that runs.
func (a *Acquirer) stuckFor(v *volume.Volume, stuck bool) time.Duration {
	key := heldKey{v.ID, attachment(v).Instance}
	if !stuck {
		delete(a.held, key)
		return 0
	}
	if a.held == nil {
		a.held = map[heldKey]time.Time{}
	}
	if a.held[key].IsZero() {
		a.held[key] = time.Now()
	}
	return time.Since(a.held[key])
}

// attachOne attaches the first of the volumes that lets itself be attached, and tells whether there was one. Others may be faster.
func (a *Acquirer) attachOne(ctx context.Context, free []*volume.Volume) (bool, error) {
	var errs []error
	for _, v := range free {
		device := a.freeDevice()
		if device == "" {
			return false, a.noDevice(ctx)
		}
		err := a.attach(ctx, v, device)
		var denied *PermissionError
		switch {
		case err == nil:
			return true, nil
		case errors.As(err, &denied) || ctx.Err() != nil:
			return false, err
		case code(err) == "InvalidParameterValue" && strings.Contains(err.Error(), device):
			// Another volume is being attached under that name, perhaps by the manager of another cluster.
			a.markUsed(device)
			return true, nil
		}
		errs = append(errs, fmt.Errorf("attach volume %s: %w", v, err))
	}
	return false, errors.Join(errs...)
}

// noDevice looks anew which names are taken, for the next try.
func (a *Acquirer) noDevice(ctx context.Context) error {
	now, err := FindSelf(ctx, a.Client)
	if err != nil {
		return err
	}
	a.Self.Devices, a.used = now.Devices, nil
	return errors.New("all of /dev/xvdu to /dev/xvdz are taken on this machine")
}

func (a *Acquirer) markUsed(device string) {
	if a.used == nil {
		a.used = map[string]bool{}
	}
	a.used[device] = true
}

// freeDevice is a name that isn't in use here.
func (a *Acquirer) freeDevice() string {
	for letter := 'u'; letter <= 'z'; letter++ {
		name := "/dev/xvd" + string(letter)
		if !a.used[name] && !slices.Contains(a.Self.Devices, name) {
			return name
		}
	}
	return ""
}

// attach asks EC2 to attach a volume and waits until it is.
func (a *Acquirer) attach(ctx context.Context, v *volume.Volume, device string) error {
	a.say("attaching volume %s (%d GiB, %s) as %s", v, v.SizeGiB, v.Type, device)
	call, cancel := context.WithTimeout(ctx, requestTimeout)
	_, err := a.Client.onNode().AttachVolume(call, &ec2.AttachVolumeInput{VolumeId: aws.String(string(v.ID)),
		InstanceId: aws.String(a.Self.Instance), Device: aws.String(device)})
	cancel()
	if err != nil {
		return a.Client.explain("AttachVolume", a.Self.arn("volume", string(v.ID))+" and "+a.Self.arn("instance", a.Self.Instance), err)
	}
	began, wait, seen := time.Now(), a.poll(), false
	for {
		now, err := a.Client.Volume(ctx, v.ID)
		var at *volume.Attachment
		if err == nil {
			at = attachment(now)
		}
		var denied *PermissionError
		switch {
		case errors.As(err, &denied):
			return err
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			a.tell("waiting for EC2: " + err.Error())
		case at != nil && at.Instance != a.Self.Instance:
			return fmt.Errorf("EC2 gave it to %s instead", at.Instance)
		case at != nil && at.State == "attached":
			a.markUsed(device)
			return nil
		case at == nil && (seen || time.Since(began) > attachPatience):
			return fmt.Errorf("EC2 took the attachment back: for an encrypted volume this means that this machine's role may not use its key %q (kms:CreateGrant and kms:Decrypt, docs/aws.md)", v.Key)
		case at != nil:
			seen = true
			a.tell(fmt.Sprintf("waiting until EC2 has attached volume %s (it says: %s)", v, at.State))
		}
		if !sleep(ctx, wait) {
			return context.Cause(ctx)
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// force detaches a volume from a machine where it is stuck.
func (a *Acquirer) force(ctx context.Context, v *volume.Volume, reason string) error {
	at := attachment(v)
	a.say("detaching volume %s from %s by force: %s", v, at.Instance, reason)
	call, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := a.Client.onNode().DetachVolume(call, &ec2.DetachVolumeInput{VolumeId: aws.String(string(v.ID)),
		InstanceId: aws.String(at.Instance), Force: aws.Bool(true)})
	switch {
	case code(err) == "IncorrectState": // it is free by now
		return nil
	case err != nil:
		return a.Client.explain("DetachVolume", a.Self.arn("volume", string(v.ID))+" and "+a.Self.arn("instance", at.Instance), err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
