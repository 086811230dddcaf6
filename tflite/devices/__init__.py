"""What files are measured on besides this machine: phones over adb, Linux boards over ssh."""
