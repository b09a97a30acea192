#define _DEFAULT_SOURCE
#include "boot_linux.h"
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS 32

static void run(const char *program, char *line)
{
    char shown[256], *words[WORDS + 2];
    int n = 0, status = 0;
    pid_t child;
    snprintf(shown, sizeof(shown), "%s", line);
    words[n++] = (char *)(size_t)program;
    for (char *word = strtok(line, " \n"); word && n <= WORDS; word = strtok(NULL, " \n"))
        words[n++] = word;
    words[n] = NULL;
    if (n == 1)
        return;
    fflush(stdout);
    child = fork();
    if (!child) {
        execv(program, words);
        _exit(127);
    }
    if (child < 0)
        printf("fedmpq-edge %s: cannot be started\n", shown);
    else if (waitpid(child, &status, 0) == child && WIFSIGNALED(status))
        printf("fedmpq-edge %s: killed by signal %d\n", shown, WTERMSIG(status));
    else
        printf("fedmpq-edge %s: exit code %d\n", shown, WEXITSTATUS(status));
}

void fmpq_boot(const char *program)
{
    char line[256];
    FILE *commands;
    mkdir("/proc", 0555);
    mkdir("/sys", 0555);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    commands = fopen(FMPQ_BOOT_COMMANDS, "r");
    if (!commands)
        printf("fedmpq-edge: there is no %s\n", FMPQ_BOOT_COMMANDS);
    while (commands && fgets(line, sizeof(line), commands)) {
        line[strcspn(line, "\n")] = 0;
        run(program, line);
    }
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}
