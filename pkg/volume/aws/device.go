package aws

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/volume"
)

// byID is how udev names an EBS volume on machines where it is an NVMe device.
const byID = "dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_"

// devicePoll is the time between looks for a device that has just been attached.
const devicePoll = 500 * time.Millisecond

// serial is how a volume calls itself as an NVMe device: its id without the dash.
func serial(id volume.ID) string { return strings.ReplaceAll(string(id), "-", "") }

// device waits until the attached volume is there as a device, and returns its path.
func (a *Acquirer) device(ctx context.Context, v *volume.Volume) (string, error) {
	for {
		var path string
		err := a.Host.Do(func() (err error) {
			path, err = findDevice(a.DeviceRoot, v)
			return err
		})
		switch {
		case err == nil:
			return path, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("find the device of volume %s: %w", v, err)
		}
		a.tell(fmt.Sprintf("waiting until volume %s, which is attached as %s, appears as a device: %v", v, attachment(v).Device, err))
		if !sleep(ctx, devicePoll) {
			return "", context.Cause(ctx)
		}
	}
}

// findDevice looks at the names that prove which volume it is, and only then at the one that was
// asked for, which machines with NVMe don't use. An error that wraps fs.ErrNotExist means that it
// isn't there yet.
func findDevice(root string, v *volume.Volume) (string, error) {
	link := filepath.Join(root, byID+serial(v.ID))
	if _, err := os.Stat(link); err == nil {
		return link, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	// Without udev's links the kernel still tells the serial number.
	serials, err := filepath.Glob(filepath.Join(root, "sys/block/nvme*/device/serial"))
	if err != nil {
		return "", err
	}
	for _, path := range serials {
		data, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(data)) != serial(v.ID) {
			continue
		}
		name := filepath.Base(filepath.Dir(filepath.Dir(path)))
		dev := filepath.Join(root, "dev", name)
		if _, err := os.Stat(dev); err != nil {
			return "", err
		}
		return dev, nil
	}
	asked := attachment(v).Device
	for _, name := range []string{asked, strings.Replace(asked, "/dev/sd", "/dev/xvd", 1)} {
		path := filepath.Join(root, name)
		if name == "" {
			continue
		}
		if _, err := os.Stat(path); err == nil {
			return path, checkName(root, path, v)
		}
	}
	return "", fmt.Errorf("neither %s nor %s is there: %w", link, filepath.Join(root, asked), fs.ErrNotExist)
}

// checkName refuses a name that leads to another volume's NVMe device: links of that form are made by scripts, and can be left over.
func checkName(root, path string, v *volume.Volume) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(root, "sys/block", filepath.Base(real), "device/serial"))
	if err != nil {
		return nil //nolint:nilerr // no NVMe device, so the name is the kernel's own
	}
	if s := strings.TrimSpace(string(data)); strings.HasPrefix(s, "vol") && s != serial(v.ID) {
		return fmt.Errorf("%s leads to %s, which is volume %s: %w", path, real, s, volume.ErrInUse)
	}
	return nil
}
